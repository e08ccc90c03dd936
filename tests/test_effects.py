"""What the embedded run has to show, held on the smoke profile's own studies: that VFMGL learns, that its evidence lies in the lesion, that
lambda moves, and that no method ends where it started.

VFMGL_EFFECTS=whole takes all four tasks, and every method of the profile with three seeds: before a release, and after a change of the
profile or of phantoms. By default VFMGL alone is trained for the paper's first use case, with the three seeds that an interval needs: its
gains are what intervals are asked of, HGKT and stage II are both in it, and a fault of either, of the student or of the settings that keeps
it from learning shows there. That Camelyon17's phantoms can be learnt, tests/tasks/phantoms holds; that VFMGL learns a segmentation,
tests/test_four_classes.py, on drawn organs. The gains on nuclei and prostates are left to `whole`.

`OPEN` lists what the run does not show yet; it is written out like the rest (pytest -s), and taken off the list when it is reached. Whether
VFMGL is ahead of other methods, and how many batches DDBL keeps, is written out and asserted nowhere.
"""

import os
import sys

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.evaluation.hgkt_tables import movement
from vfmgl_lib.evaluation.statistics import crossed_estimate
from vfmgl_lib.interpretation import cam
from vfmgl_lib.interpretation.local_models import known_lesions, maps_of
from vfmgl_lib.study.study import Study, trivial_baseline
from vfmgl_lib.study.workspace import Workspace, open_workspace

pytestmark = pytest.mark.slow
WHOLE = os.environ.get("VFMGL_EFFECTS", "") == "whole"
SEEDS = (0, 1, 2)
LEAST_MOVE = 0.01  # of lambda: at the paper's rates it stays as it was initialised to the third digit
RANDOM_SETS = 3  # of random weights
TASKS = ("endometrial", "nuclei", "camelyon17", "prostate")
EVIDENCE = "evidence in the lesion"
OPEN = {
    "endometrial": {EVIDENCE, "untrained"},
    "nuclei": {EVIDENCE},
    "camelyon17": {EVIDENCE, "trivial baseline"},
    "prostate": {EVIDENCE, "trivial baseline"},
}


@pytest.fixture(scope="module", params=TASKS if WHOLE else TASKS[:1])
def runs(request, tmp_path_factory) -> dict[int, Workspace]:
    """seed -> workspace, all on one set of phantoms; studies stop at the round of VFMGL."""
    first = open_workspace(request.param, "smoke", runs=tmp_path_factory.mktemp(request.param), federation__match_updates=False)
    return {seed: first.variant(seed=seed) for seed in SEEDS}


def own(study: Study) -> pd.DataFrame:
    """The main metric on the own centre's test set: centre -> untrained, trained."""
    table = study.metrics
    metric = "dice" if study.settings.is_segmentation else "auc"
    mine = (table["model_center"] == table["test_center"]) & (table["split"] == "test") & (table["metric"] == metric)
    last = study.rounds["stage"].max()  # "II" where there is one
    untrained, trained = (
        table[mine & (table["round"] == number) & (table["stage"] == stage)].set_index("test_center")["value"]
        for number, stage in ((0, "untrained"), (study.last_round, last))
    )
    return pd.DataFrame({"untrained": untrained, "trained": trained})


def without_learning(study: Study) -> pd.DataFrame:
    """The main metric on the own centre's test set: centre -> trivial baseline, chance (of a mask: everything marked)."""
    rows = trivial_baseline(study.settings, study.manifest)
    metric = "dice" if study.settings.is_segmentation else "auc"
    trivial = rows[(rows["metric"] == metric) & (rows["split"] == "test")].set_index("test_center")["value"]
    if metric == "auc":
        return pd.DataFrame({"trivial baseline": trivial, "chance": 0.5})
    seen = study.predictions.query("round == 0 and split == 'test'")
    share = (seen["tp"] + seen["fn"]) / (seen["tp"] + seen["fp"] + seen["fn"] + seen["tn"])
    return pd.DataFrame({"trivial baseline": trivial, "chance": (2 * share / (1 + share)).groupby(seen["test_center"]).mean()})


def evidence_in_lesion(workspace: Workspace, study: Study) -> pd.Series:
    """Share of the maps' energy inside the lesion, trained less randomised, mean over the images of each centre."""
    size, test = study.settings.data.image_size, study.manifest.select(split="test")
    table = test if study.settings.is_segmentation else test[test["label"] == 1]
    table = table[table["center"].isin(own(study).index)]  # external centres train no model
    places = known_lesions(study.manifest, table["id"], size, workspace.on_phantoms)
    images = {center: ImageDataset(study.manifest, rows, size) for center, rows in table.groupby("center")}
    students = {center: study.student(center, "II") for center in images}
    layer = cam.default_layer(next(iter(students.values())), size)

    def inside(models) -> pd.Series:
        return cam.localisation(maps_of(models, images, layer), places, "").set_index(["center", "id"])["inside"]

    draws = [{center: cam.randomised(student, draw) for center, student in students.items()} for draw in range(RANDOM_SETS)]
    random = pd.concat([inside(models) for models in draws], axis=1).mean(axis=1)
    return (inside(students) - random).groupby("center").mean()


def lower(table: pd.DataFrame) -> float:
    """The one-sided 95 % limit of the mean over seeds (rows) and centres (columns)."""
    found = crossed_estimate(table.to_numpy())
    assert not found.reason, found.reason
    return found.lower()


def write(*lines: object) -> None:
    sys.stdout.write("\n".join(["", *map(str, lines), ""]))


def test_vfmgl_learns_and_its_evidence_lies_in_the_lesion(runs):
    studies = {seed: workspace.run("vfmgl", progress=False) for seed, workspace in runs.items()}
    trained = pd.DataFrame({seed: own(study)["trained"] for seed, study in studies.items()}).T
    task, failed = studies[0].settings.task, []
    write(f"{task}: VFMGL on its own centres' test sets, a row a seed", trained.round(3), f"mean {trained.to_numpy().mean():.3f}")
    references = {seed: own(study)[["untrained"]].join(without_learning(study)) for seed, study in studies.items()}
    for name in references[0]:
        gain = trained - pd.DataFrame({seed: table[name] for seed, table in references.items()}).T
        write(f"{task}: over {name}: {gain.to_numpy().mean():+.3f}, one-sided 95 % limit {lower(gain):+.3f}")
        failed += [name] * bool(lower(gain) <= 0)
    inside = pd.DataFrame({seed: evidence_in_lesion(runs[seed], study) for seed, study in studies.items()}).T
    write(f"{task}: energy in the lesion over random weights: {inside.to_numpy().mean():+.3f}, limit {lower(inside):+.3f}")
    failed += [EVIDENCE] * bool(lower(inside) <= 0)
    for seed, study in studies.items():
        moved = pd.DataFrame({center: movement(part) for center, part in study.stages.groupby("center")}).T
        write(f"{task}: movement of lambda, seed {seed}", moved.round(3))
        enough = moved["largest change"] > np.maximum(0.1 * moved["spread"], LEAST_MOVE)
        failed += [f"lambda of seed {seed}"] * (not enough.any())
        kept = study.rounds.query("stage == 'II'").groupby("round")["kept_share"].mean()
        write(f"{task}: kept share by round, seed {seed}: {kept.round(2).tolist()}")
    write(f"{task}: not reached: {', '.join(failed) or 'nothing'}")
    assert set(failed) <= OPEN[task], f"{task}: {', '.join(failed)}"


@pytest.mark.skipif(not WHOLE, reason="trains every method with three seeds: VFMGL_EFFECTS=whole")
def test_no_method_ends_where_it_started(runs):
    rows = []
    for method in runs[0].settings.comparison.methods:
        for seed in SEEDS:
            rows += own(runs[seed].run(method, progress=False)).assign(method=method, seed=seed).reset_index().to_dict("records")
    means = pd.DataFrame(rows).groupby("method", sort=False)[["untrained", "trained"]].mean()
    write(runs[0].settings.task, means.round(3))
    assert (means["trained"] > means["untrained"]).all()
