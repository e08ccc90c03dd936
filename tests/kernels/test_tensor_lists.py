"""What torch's unnamed functions on lists are relied on for: the bits of a loop over the tensors."""

import pytest
import torch

from vfmgl_lib.kernels import tensor_lists

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


def tensors(seed, device):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 5), (), (0, 2), (7, 1, 3, 3)]
    drawn = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    return [*drawn, torch.randn(4, 6, generator=generator).to(device).T]


def same(found, expected):
    return all(map(torch.equal, found, expected)) and len(found) == len(expected)


@pytest.mark.parametrize("device", DEVICES)
def test_new_tensors(device):
    one, other, factor = tensors(0, device), tensors(1, device), torch.tensor(1 / 3, device=device)
    assert same(tensor_lists.add(one, other), [a + b for a, b in zip(one, other, strict=True)])
    assert same(tensor_lists.scale(one, factor), [a * factor for a in one])
    assert same(one, tensors(0, device)), "what was given stays"


@pytest.mark.parametrize("device", DEVICES)
def test_in_place(device):
    one, other = tensors(0, device), tensors(1, device)
    tensor_lists.add_(one, other)
    assert same(one, [a + b for a, b in zip(tensors(0, device), other, strict=True)])
    tensor_lists.copy_(one, other)
    assert same(one, other) and one[0].data_ptr() != other[0].data_ptr()


@pytest.mark.parametrize("device", DEVICES)
def test_sgd_is_that_of_torchs_optimiser(device):
    parameters, momenta = tensors(0, device), [torch.zeros_like(tensor) for tensor in tensors(0, device)]
    expected = [torch.nn.Parameter(tensor.clone()) for tensor in parameters]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "dampening": 0.0}
    optimizer = torch.optim.SGD(expected, **options, fused=True)
    for step in range(3):
        gradients = tensors(step + 1, device)
        for parameter, gradient in zip(expected, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        tensor_lists.sgd_(parameters, gradients, momenta, **options)
    assert same(parameters, expected) and same(momenta, [optimizer.state[parameter]["momentum_buffer"] for parameter in expected])
