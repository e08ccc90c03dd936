"""Counts against numbers worked out by hand or published, and that a measurement measures."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vfmgl_lib.evaluation.complexity import count, footprint, teacher_shape
from vfmgl_lib.models.students import ResNet18, UNet
from vfmgl_lib.tools.export.formats import onnx_model


def test_count_of_layers_worked_out_by_hand():
    layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 8 * 8, 2))
    found = count(layers, 8)
    macs = 3 * 5 * 9 * 64 + 5 * 64 * 2
    assert found["macs"] == macs and found["flops"] == 2 * macs and found["attention_macs"] == 0
    assert found["parameters"] == 3 * 5 * 9 + 5 + 5 * 64 * 2 + 2
    assert found["bytes"] == 4 * found["parameters"]


# In G MACs; the convolutions of torchvision's ResNet18 with 1000 classes are published as 1.814.
GOLDEN = {
    ("resnet18", 224): (11_177_538, 1_813_562_368),
    ("unet", 256): (7_763_074, 12_073_304_064),
    ("unet", 384): (7_763_074, 27_164_934_144),
}


@pytest.mark.parametrize(("name", "size"), GOLDEN)
def test_students_at_the_papers_sizes(name, size):
    with torch.device("meta"):
        student = {"resnet18": ResNet18, "unet": UNet}[name](2)
    found = count(student, size)
    assert (found["parameters"], found["macs"]) == GOLDEN[name, size]


def test_the_teacher_at_the_papers_size():
    found = count(teacher_shape("vit_base_patch14_dinov2.lvd142m"), 224)
    assert found["parameters"] == 86_579_712 and found["macs"] == 23_161_227_264
    tokens, width, depth = 257, 768, 12
    assert found["attention_macs"] == 2 * tokens**2 * width * depth, "Q K^T and its product with V, in every block"
    assert (found["macs"] - found["attention_macs"]) / 1e9 == pytest.approx(21.96, rel=1e-3), "the paper's count"


def test_counting_leaves_the_model_alone():
    student = ResNet18(2, 4)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    count(student.train(), 32)
    assert student.training and all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_a_file_says_what_network_it_is_of(tmp_path):
    assert count(teacher_shape("pocket_vit"), 64)["parameters"] < 3e6
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"teacher .*x.safetensors: .*write NAME="):
        teacher_shape(str(tmp_path / "x.safetensors"))


def test_footprint_measures_in_processes_of_their_own(tmp_path):
    (tmp_path / "student.onnx").write_bytes(onnx_model(ResNet18(2, 8).eval(), image_size=64))
    exported = {"onnx": {"onnx": str(tmp_path / "student.onnx")}}
    plain = {"torch": {"student": "resnet18", "width": 8, "image_size": 64}}
    tables = [footprint(exported, batches=(1, 64), threads=1, seconds=0.1), footprint(plain, batches=(1,), threads=1, seconds=0.1)]
    found = pd.concat(tables).set_index(["model", "batch"])
    assert list(found.index) == [("onnx", 1), ("onnx", 64), ("torch", 1)]
    assert (found["p50_ms"] > 0).all() and (found["runs"] >= 1).all()
    assert (found["p95_ms"].isna() == (found["runs"] < 5)).all(), "of few runs there is no 95th percentile"
    assert (found["p95_ms"].fillna(np.inf) >= found["p50_ms"]).all()
    assert found.at[("onnx", 64), "p50_ms"] > 4 * found.at[("onnx", 1), "p50_ms"], "64 images take longer than one"
    assert found.at[("onnx", 64), "peak_bytes"] > found.at[("onnx", 1), "peak_bytes"]
    assert found.at[("onnx", 1), "peak_bytes"] < found.at[("torch", 1), "peak_bytes"], "the ONNX process must not carry torch"
    assert found["gpu_bytes"].isna().all()


def test_a_measurement_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"measuring gone at batch 1 failed: .*no-such.onnx"):
        footprint({"gone": {"onnx": "no-such.onnx"}}, batches=(1,), threads=1, seconds=0.1)
