"""The students' published sizes, stage maps and common interface."""

import pytest
import torch
from safetensors.torch import save_file

from vfmgl_lib.models.students import STUDENTS, ResNet18, UNet


def test_parameter_counts_are_the_papers():
    count = {name: sum(p.numel() for p in build(2).parameters()) / 1e6 for name, build in STUDENTS.items()}
    assert count["resnet18"] == pytest.approx(11.18, abs=0.005) and count["unet"] == pytest.approx(7.76, abs=0.005)


def test_stage_maps_are_those_of_the_paper():
    maps = ResNet18(2).eval().encode(torch.zeros(1, 3, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    maps = UNet(2).eval().encode(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8)]


@pytest.mark.parametrize("name", STUDENTS)
def test_interface(name):
    student = STUDENTS[name](2, 4).eval()
    images = torch.rand(2, 3, 32, 32)
    logits, maps = student.forward_stages(images)
    torch.testing.assert_close(student(images), logits)
    torch.testing.assert_close(student.head_from_stages(maps), logits)
    assert list(student.stages) == list(student.stage_channels)
    assert [m.shape[1] for m in maps] == list(student.stage_channels.values())
    owned = [id(p) for modules in student.stages.values() for module in modules for p in module.parameters()]
    assert len(owned) == len(set(owned)), "a parameter belongs to one stage"


def test_resnet_equals_timms_own_forward():
    student = ResNet18(3).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(student(images), student.net(images))


def test_predictions_do_not_depend_on_the_batch():
    for build in STUDENTS.values():
        student = build(2, 4).eval()
        images = torch.rand(3, 3, 32, 32)
        torch.testing.assert_close(student(images)[:1], student(images[:1]), rtol=1e-4, atol=1e-5)


def test_weights_from_a_file(tmp_path):
    source = ResNet18(1000, 4)
    save_file(source.net.state_dict(), tmp_path / "imagenet.safetensors")
    student = ResNet18(2, 4, weights=str(tmp_path / "imagenet.safetensors"))
    assert torch.equal(student.net.layer4[0].conv1.weight, source.net.layer4[0].conv1.weight)
    with pytest.raises(ValueError, match=r"imagenet.safetensors do not fit the model: .* tensors"):
        ResNet18(2, 8, weights=str(tmp_path / "imagenet.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors: no such file"):
        UNet(2, weights=str(tmp_path / "nothing.safetensors"))
    with pytest.raises(ValueError, match="there are none for the UNet"):
        UNet(2, weights="hub")


def test_unet_names_a_size_that_does_not_halve():
    with pytest.raises(ValueError, match=r"multiples of 16, got \(1, 3, 40, 32\)"):
        UNet(2, 4)(torch.zeros(1, 3, 40, 32))
