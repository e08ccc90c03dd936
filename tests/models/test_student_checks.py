"""What must hold of a student before training: a layer without second derivatives is named, randomness and single values are refused."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vfmgl_lib.models import timm_students
from vfmgl_lib.models.student_checks import (
    check_batch,
    check_determinism,
    check_input,
    check_second_derivatives,
    check_student,
)
from vfmgl_lib.models.student_names import StudentError
from vfmgl_lib.models.students import build_student

SILU = nn.functional.silu


class _Once(Function):
    """A fused activation: its backward says that it cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return SILU(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return upstream * s * (1 + x * (1 - s))


class _Silent(_Once):
    """The same, but its backward loses the graph without a word."""

    @staticmethod
    def backward(ctx, upstream):
        x = ctx.saved_tensors[0].detach()
        s = torch.sigmoid(x)
        return upstream * s * (1 + x * (1 - s))


class _Fused(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_convnext",
        "test_efficientnet_gn",
        "test_nfnet",
        "unet:test_resnet",
        "unet:test_convnext",
        "mobilenetv3_small_050",
        "efficientvit_b0",  # its attention computes in float32 whatever it is given
    ],
)
def test_what_has_second_derivatives_passes_and_no_random_number_is_drawn(name):
    before = torch.get_rng_state()
    check_student(name, 4, 64, twice=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("function", [_Once, _Silent])
def test_a_layer_without_second_derivatives_is_named(function):
    """torch says nothing of either where HGKT takes derivatives by what can be reached alone: the values are what tells."""
    torch.manual_seed(0)
    student = build_student("test_resnet", 2, 4)
    student.net.layer2[0].act1 = _Fused(function)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(StudentError, match=r"layer net.layer2.0.act1 \(_Fused\) has no second derivative, which HGKT needs: it is off by"):
        check_second_derivatives(student, "test_resnet")
    assert all(torch.equal(before[key], tensor) for key, tensor in student.state_dict().items())
    student.net.layer2[0].act1 = nn.SiLU()
    check_second_derivatives(student, "test_resnet")


def test_fused_attention_is_taken_apart():
    """torch's fused attention has no second derivative on a CPU."""
    student = build_student("mobilevit_xxs", 2, 4)
    check_second_derivatives(student, "mobilevit_xxs")
    attention = [module for module in student.modules() if hasattr(module, "fused_attn")]
    assert attention and not any(module.fused_attn for module in attention)


def test_a_student_that_draws_is_refused():
    student = build_student("test_efficientnet", 2, 4)
    check_determinism(student, "test_efficientnet")
    student.net.blocks[1].append(nn.Dropout(0.2))
    with pytest.raises(StudentError, match="draws random numbers in training"):
        check_determinism(student, "test_efficientnet")


def test_a_map_that_a_later_layer_changes_is_refused(monkeypatch):
    """NFNet's blocks begin with an activation, which works in place as timm has it: on the map of the stage before."""
    monkeypatch.setattr(timm_students, "settled", lambda net: net)
    timm_students.stage_table.cache_clear()
    student = build_student("test_resnet", 2, 4)
    check_determinism(student, "test_resnet")
    student.net.layer3 = nn.Sequential(nn.ReLU6(inplace=True), nn.Hardtanh(0.1, 0.2, inplace=True), *student.net.layer3)
    with pytest.raises(StudentError, match="a layer behind stage3 changes its map in place"):
        check_determinism(student, "test_resnet")


def test_a_layer_whose_second_derivative_torch_does_not_have_is_named_with_torch_s_words():
    class Attention(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)[:, None]
            return x + nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0].transpose(1, 2).view_as(x)

    student = build_student("test_resnet", 2, 4)
    student.net.layer4.append(Attention())
    with pytest.raises(StudentError, match=r"layer net.layer4.1 \(Attention\) has no second .*: derivative for aten::_scaled_dot_product"):
        check_second_derivatives(student, "test_resnet")


def test_a_size_that_a_network_cannot_take_is_named():
    check_input(build_student("unet:test_resnet", 2, 4), "unet:test_resnet", 64)
    with pytest.raises(StudentError, match=r"student unet:test_resnet: cannot take images of 48 px .*multiples of 32.*data.image_size"):
        check_input(build_student("unet:test_resnet", 2, 4), "unet:test_resnet", 48)
    with pytest.raises(StudentError, match=r"student inception_v3: cannot take images of 64 px"):
        check_student("inception_v3", 4, 64, twice=False)


@pytest.mark.parametrize(("name", "layer"), [("test_resnet", "net.layer4.0.bn1"), ("resnet18", "net.layer4.0.bn1")])
def test_a_batch_smaller_than_batch_normalisation_needs_names_the_layer(name, layer):
    student = build_student(name, 2, 4)
    with pytest.raises(StudentError, match=rf"batch normalisation {layer} has one value a channel in a batch of 1 image of 32 px \(here\)"):
        check_batch(student, name, 1, 32, "here")
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # what torch says of it
        student.train()(torch.rand(1, 3, 32, 32))
    check_batch(student, name, 2, 32, "here")
    check_batch(student, name, 1, 64, "here")


def test_a_student_without_batch_normalisation_takes_a_batch_of_one():
    check_batch(build_student("test_convnext", 2, 4), "test_convnext", 1, 32, "here")


def test_the_paper_s_students_are_not_asked(monkeypatch):
    monkeypatch.setattr("vfmgl_lib.models.student_checks.build_student", lambda *_: pytest.fail("built"))
    for name in ("resnet18", "unet"):
        check_student(name, 64, 224, twice=True)


def test_torch_still_has_no_second_derivative_of_the_hard_sigmoid():
    """So that `kernels.twice_differentiable` may do without its own when torch has one."""
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(nn.functional.hardsigmoid(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="hardsigmoid_backward is not implemented"):
        torch.autograd.grad(gradient.sum(), x)
