"""Statistics of batch normalisation: pooled moments of one pass, no trace but them, and batches normalised by themselves."""

import copy

import pytest
import torch
from torch import nn

from vfmgl_lib.data.loading import fixed_batches
from vfmgl_lib.models.batch_norm import batch_norms, recalibrate, use_batch_statistics
from vfmgl_lib.models.students import build_student


@pytest.fixture
def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))


def _batches(sizes=(7, 3, 2)):
    generator = torch.Generator().manual_seed(4)
    return [torch.rand(size, 3, 9, 9, generator=generator) + index for index, size in enumerate(sizes)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_are_the_pooled_moments_of_all_inputs_of_the_pass(net, dtype):
    net, batches = net.to(dtype), [batch.to(dtype) for batch in _batches()]
    first = [net[0](batch) for batch in batches]
    second = []
    for maps in first:  # the pass by hand: every batch normalised by itself, no dropout
        normal = (maps - maps.mean((0, 2, 3), keepdim=True)) / (maps.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        second.append(net[4](normal.relu()))
    recalibrate(net, batches)
    for layer, inputs in ((net[1], first), (net[5], second)):
        values = torch.cat([maps.detach().double().transpose(0, 1).flatten(1) for maps in inputs], dim=1)  # (C, all values)
        torch.testing.assert_close(layer.running_mean.double(), values.mean(1), rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(layer.running_var.double(), values.var(1, unbiased=False), rtol=2e-5, atol=2e-6)


def test_the_order_of_the_batches_leaves_no_trace_their_composition_does(net):
    batches, other = _batches(), copy.deepcopy(net)
    recalibrate(net, batches)
    recalibrate(other, [batches[2], batches[0], batches[1]])
    assert all(torch.equal(one, two) for one, two in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    recalibrate(other, torch.cat(batches).split(6))
    assert not torch.equal(net[5].running_var, other[5].running_var)
    torch.testing.assert_close(net[1].running_var, other[1].running_var)  # nothing is normalised before the first layer


@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_the_statistics_changes(net, training):
    net.train(training)
    net[4].eval()
    net[1].momentum = 0.3
    before, modes, state = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], torch.get_rng_state()
    recalibrate(net, _batches())
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{layer}.{kind}" for layer in (1, 5) for kind in ("running_mean", "running_var")}
    assert [m.training for m in net.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert (net[1].momentum, net[5].momentum) == (0.3, 0.1)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_second_pass_ends_with_the_same_bits(net):
    recalibrate(net, _batches())
    once = copy.deepcopy(net.state_dict())
    recalibrate(net, _batches())
    assert all(torch.equal(once[name], tensor) for name, tensor in net.state_dict().items())


def test_a_failing_pass_leaves_the_modes_and_momenta_as_they_were(net):
    with pytest.raises(RuntimeError):
        recalibrate(net, [torch.rand(2, 5, 9, 9)])
    assert net[1].momentum == 0.1 and net.training and not net[1]._forward_hooks


def test_no_image_is_an_error_and_without_a_layer_none_is_read(net):
    with pytest.raises(ValueError, match="at least one batch of images"):
        recalibrate(net, [])

    def unread():
        raise AssertionError("images were read for a model without batch normalisation")
        yield

    recalibrate(nn.Conv2d(3, 4, 3), unread())


def test_fixed_batches_are_in_order_and_none_has_one_image():
    assert [len(batch) for batch in fixed_batches(33)] == [16, 17]
    assert [row for batch in fixed_batches(40) for row in batch] == list(range(40)) and fixed_batches(1) == [[0]]


@pytest.mark.parametrize("name", ["unet", "resnet18"])
def test_a_student_with_batch_statistics_depends_on_its_batch_and_has_no_running_ones(name):
    torch.manual_seed(0)
    plain, student = (build_student(name, 2, 8, batch_statistics=on).eval() for on in (False, True))
    images = torch.rand(3, 3, 64, 64)
    alone, together = (model(images[:1])[0] for model in (plain, student)), (model(images)[0] for model in (plain, student))
    (plain_alone, alone), (plain_together, together) = alone, together
    torch.testing.assert_close(plain_alone, plain_together)
    assert not torch.allclose(alone, together, atol=1e-3)
    assert not [key for key in student.state_dict() if "running" in key or "tracked" in key] and batch_norms(student)
    use_batch_statistics(plain)
    assert plain.state_dict().keys() == student.state_dict().keys()
