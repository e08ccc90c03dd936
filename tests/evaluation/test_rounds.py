"""Which cutoff the rows of a round have."""

import pandas as pd
import torch

from vfmgl_lib.evaluation.rounds import RoundEvaluation, RoundTables
from vfmgl_lib.methods.settings import load_settings


class Made(RoundEvaluation):
    """Its data sets are the predictions."""

    def _predict(self, student, data, masks):
        return data


def rows(split: str, probability: list[float], label: list[int]) -> pd.DataFrame:
    names = [f"{split}{place}" for place in range(len(label))]
    return pd.DataFrame({"id": names, "patient": names, "test_center": "A", "split": split, "probability": probability, "label": label})


def test_a_round_is_measured_at_the_cutoff_of_the_validation_set_in_every_split():
    sets = {"train": rows("train", [0.1, 0.2, 0.9, 0.9], [0, 0, 1, 1]), "val": rows("val", [0.1, 0.6, 0.3, 0.7], [0, 0, 1, 1])}
    sets["test"] = rows("test", [0.1, 0.2, 0.8, 0.3], [0, 0, 1, 1])
    accuracy = {}
    for name, given in {"with": sets, "without": {split: sets[split] for split in ("train", "test")}}.items():
        evaluation = Made(load_settings("endometrial", "paper"), {"A": given}, "patient", torch.device("cpu"))
        tables = RoundTables({"metrics": []}, [])
        cutoff = evaluation._own(tables, None, "A", 1, "I", None)
        found = pd.DataFrame(tables.tables["metrics"]).query("metric == 'accuracy'").set_index("split")["value"]
        accuracy[name] = (cutoff, *found[list(given)])
    assert accuracy["with"] == (0.7, 1.0, 0.75, 0.75) and accuracy["without"] == (0.9, 1.0, 0.5)
