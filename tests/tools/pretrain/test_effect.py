"""What the pocket teacher knows, as an effect and not a shape.

That HGKT passes it on to a student was measured too, and was not found: results/pocket_teacher/README.md.
"""

import numpy as np
import pytest
from scipy import stats

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools.pretrain.training import export, new_trunk

SMALL = {
    "phantoms__centers": 2,
    "phantoms__samples": {"train": 48, "val": 10, "test": 40},
    "data__per_center": {"train": 48, "test": 40},
    "teacher__grid": 4,
}


@pytest.mark.slow
def test_a_probe_of_it_beats_one_of_random_weights_in_mean_auc(tmp_path):
    """One-sided 95 % limit of the mean difference over four sets of phantoms, each with its own random weights."""
    differences = []
    for seed in range(4):
        with torch_seed(seed_sequence(seed, "random teacher")):
            untrained = export(new_trunk(), tmp_path / f"random-{seed}.safetensors")
        auc = {}
        for name, source in (("pocket", "pocket_vit"), ("random", str(untrained))):
            study = open_workspace("camelyon17", "smoke", teacher=source, seed=seed, runs=tmp_path, **SMALL).run(
                "frozen_probe", progress=False
            )
            rows = study.metrics.query("metric == 'auc' and split == 'test' and model_center == test_center")
            auc[name] = rows.loc[rows["round"] == rows["round"].max(), "value"].mean()
        differences.append(auc["pocket"] - auc["random"])
    mean, error = np.mean(differences), stats.sem(differences)
    assert mean - stats.t.ppf(0.95, len(differences) - 1) * error > 0, differences
