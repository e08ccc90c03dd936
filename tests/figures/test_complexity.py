"""Figures of notebook 08 show the numbers they are given."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.complexity import counted
from vfmgl_lib.figures import complexity as drawn
from vfmgl_lib.methods.settings import load_settings


def texts(figure) -> list[str]:
    return [text.get_text().strip() for axis in figure.axes for text in axis.texts]


@pytest.fixture
def footprints() -> pd.DataFrame:
    rows = [
        ("student", "torch 2", "cpu", 2, 1, 9, 40.0, 60.0, 800, 80, np.nan),
        ("teacher", "torch 2", "cpu", 2, 1, 3, 1234.0, 1500.0, 1100, 380, np.nan),
        ("student, exported", "onnxruntime 1", "cpu", 2, 32, 1, 900.0, np.nan, 260, 200, np.nan),
        ("student", "torch 2", "cuda", 2, 1, 99, 2.0, 2.5, 1500, 700, 90),
    ]
    names = ["model", "runtime", "device", "threads", "batch", "runs", "p50_ms", "p95_ms", "peak_bytes", "added_bytes", "gpu_bytes"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(**{name: table[name] * 2**20 for name in names[-3:]})


def test_sizes_give_the_ratio():
    figure = drawn.sizes(counted(load_settings("endometrial", "paper"), "paper"))
    assert texts(figure) == ["86.6", "11.2  (1 : 7.7)", "23.2", "1.81  (1 : 13)", "330", "42.7  (1 : 7.7)"]
    assert "resnet18, width 64, 224 px" in figure.get_supxlabel()


def test_latency_has_a_row_for_each_and_names_devices(footprints):
    figure = drawn.latency(footprints)
    axis = figure.axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["teacher, 1 image, cpu", "student, 1 image, cpu", "student, exported, 32 images, cpu", "student, 1 image, cuda"]
    assert texts(figure) == ["1,234 ms", "40 ms", "900 ms", "2 ms"]
    assert [tuple(line.get_xdata()) for line in axis.lines[::2]] == [(1234, 1500), (40, 60), (900, 900), (2, 2.5)]
    assert "1 to 99 calls each" in figure.get_supxlabel() and "onnxruntime 1" in figure.get_supxlabel()


def test_memory_is_the_processs_and_on_a_gpu_the_gpus(footprints):
    figure = drawn.memory(footprints)
    assert texts(figure) == ["1100", "800", "260", "90", "the paper's 500 MiB"]
    widths = [round(patch.get_width()) for patch in figure.axes[0].patches]
    assert widths == [720, 720, 60, 0, 380, 80, 200, 90]


def test_agreement_says_the_largest_difference():
    table = pd.DataFrame({"study": [0.1, 0.5, 0.9], "predicted": [0.1, 0.5003, 0.9]})
    figure = drawn.agreement(table, "probability of class 1")
    assert figure.axes[1].get_title(loc="left") == "difference, at most 3.0e-04"
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), [0, 3e-4, 0])
    assert drawn.agreement(table.assign(predicted=table["study"]).head(1), "Dice"), "one image without a difference"


def test_int8_cost_leaves_out_what_is_undefined():
    rows = [("val", "auc", 4, np.nan, np.nan), ("val", "accuracy", 4, 0.75, 0.5), ("test", "auc", 9, 0.8, 0.7)]
    table = pd.DataFrame(rows, columns=["split", "metric", "n", "float32", "int8"])
    figure = drawn.int8_cost(table)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["validation: decides", "test: reports"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.75] and list(figure.axes[0].lines[1].get_xdata()) == [0.5]
    assert drawn.int8_cost(table[table["split"] == "none"]), "nothing to draw is no error"
