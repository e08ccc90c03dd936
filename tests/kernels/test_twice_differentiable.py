"""The layers of the virtual steps against torch's own: values, gradients, second derivatives."""

import pytest
import torch
import torch.nn.functional as F

from vfmgl_lib.kernels.twice_differentiable import twice_differentiable_layers

# (function, x, w, arguments)
CASES = {
    "3 x 3": (F.conv2d, (2, 3, 7, 9), (4, 3, 3, 3), {"padding": 1}),
    "7 x 7, stride 2": (F.conv2d, (1, 3, 15, 13), (5, 3, 7, 7), {"stride": (2, 2), "padding": (3, 3)}),
    "1 x 1, stride 2": (F.conv2d, (2, 4, 7, 7), (3, 4, 1, 1), {"stride": 2}),
    "dilated, grouped": (F.conv2d, (2, 4, 9, 9), (6, 2, 3, 3), {"padding": 2, "dilation": 2, "groups": 2}),
    "same padding": (F.conv2d, (2, 3, 6, 6), (3, 3, 3, 3), {"padding": "same"}),
    "one pixel": (F.conv2d, (3, 2, 1, 1), (2, 2, 3, 3), {"padding": 1}),
    "transposed": (F.conv_transpose2d, (2, 4, 5, 6), (4, 3, 2, 2), {"stride": 2}),
    "transposed, output padding": (F.conv_transpose2d, (1, 2, 4, 4), (2, 3, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
}


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchs_own(case, with_bias):
    function, x_shape, w_shape, arguments = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, w = draw(*x_shape).requires_grad_(), draw(*w_shape).requires_grad_()
    outputs = w_shape[1] * arguments.get("groups", 1) if function is F.conv_transpose2d else w_shape[0]
    bias = draw(outputs).requires_grad_() if with_bias else None
    leaves = [leaf for leaf in (x, w, bias) if leaf is not None]
    upstream, directions = draw(*function(x, w, bias, **arguments).shape), [draw(*leaf.shape) for leaf in leaves]

    def everything():
        y = function(x, w, bias, **arguments).sin()
        first = torch.autograd.grad(y, leaves, upstream, create_graph=True)
        return y, *first, *torch.autograd.grad(first, leaves, directions)

    expected = everything()
    with twice_differentiable_layers():
        result = everything()
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("function", "w_shape"), [(F.conv2d, (8, 4, 1, 1)), (F.conv2d, (6, 2, 1, 1)), (F.conv_transpose2d, (4, 8, 1, 1))])
def test_a_strided_kernel_of_one_pixel_damages_no_memory(function, w_shape):
    """oneDNN wrote beyond its memory in channels_last order: the process ended, not always at once."""
    groups = 2 if w_shape[1] == 2 else 1
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(w_shape).to(memory_format=torch.channels_last).requires_grad_()
    (expected,) = torch.autograd.grad(function(x.double(), w.double(), stride=2, groups=groups).square().sum(), w)
    for _ in range(200):
        with twice_differentiable_layers():
            (found,) = torch.autograd.grad(function(x, w, stride=2, groups=groups).square().sum(), w, create_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_the_mode_is_really_used_and_ends_with_its_block():
    x, w = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 3, 3, requires_grad=True)
    with twice_differentiable_layers():
        assert "_Convolution" in type(F.conv2d(x, w).grad_fn).__name__
    assert type(F.conv2d(x, w).grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (5, 2), (2, 4, 1, 3), (3, 1, 9)])
def test_batch_normalisation_equals_torchs_own(shape):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, weight, bias = (draw(*size).requires_grad_() for size in (shape, shape[1:2], shape[1:2]))
    upstream, directions = draw(*shape), [draw(*leaf.shape) for leaf in (x, weight, bias)]

    def everything():
        statistics = torch.zeros(shape[1], dtype=torch.float64), torch.ones(shape[1], dtype=torch.float64)
        y = F.batch_norm(2 * x + 1, *statistics, weight, bias, training=True, momentum=0.3, eps=1e-3).sin()
        first = torch.autograd.grad(y, (x, weight, bias), upstream, create_graph=True)
        # all directions together, and each alone: the others' are then absent, not zero
        second = [torch.autograd.grad(first, (x, weight, bias), directions, retain_graph=True)]
        second += [
            torch.autograd.grad(one, (x, weight, bias), direction, retain_graph=True, materialize_grads=True)
            for one, direction in zip(first, directions, strict=True)
        ]
        return y, *statistics, *first, *(tensor for part in second for tensor in part)

    expected = everything()
    with twice_differentiable_layers():
        result = everything()
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_batch_normalisation_in_eval_mode_or_without_weights_is_torchs_own():
    x, ones = torch.rand(2, 3, 4, 4, requires_grad=True), torch.ones(3)
    with twice_differentiable_layers():
        assert "_BatchNorm" in type(F.batch_norm(x, None, None, ones, ones, training=True).grad_fn).__name__
        for arguments in ({"training": True}, {"weight": ones, "bias": ones, "training": False}):
            assert "_BatchNorm" not in type(F.batch_norm(x, torch.zeros(3), ones, **arguments).grad_fn).__name__


@pytest.mark.parametrize("arguments", [{"kernel_size": 2}, {"kernel_size": (3, 2), "stride": 2, "padding": 1, "ceil_mode": True}])
def test_max_pooling_equals_torchs_own(arguments):
    generator = torch.Generator().manual_seed(0)
    x, direction = (torch.randn(2, 3, 8, 6, generator=generator, dtype=torch.float64).relu() for _ in range(2))  # zeros: ties
    x.requires_grad_()

    def everything():
        y = F.max_pool2d(x, **arguments)
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return y, first, *torch.autograd.grad(first, x, direction)

    expected = everything()
    with twice_differentiable_layers():
        result = everything()
        assert "_MaxPool" in type(F.max_pool2d(x, **arguments).grad_fn).__name__
        assert "_MaxPool" not in type(F.max_pool2d(x[0], **arguments).grad_fn).__name__
        values, indices = F.max_pool2d(x, **arguments, return_indices=True)
    assert torch.equal(values, expected[0]) and not indices.is_floating_point()
    for one, other in zip(result, expected, strict=True):
        assert one.is_contiguous() and torch.equal(one, other)


def test_derivatives_by_a_factor_of_the_loss_need_the_upstream_path_alone():
    """`upstream_only`, the mode of HGKT's first virtual step, gives the same derivative by the factor, and none by the parameters."""
    generator = torch.Generator().manual_seed(0)
    x, w = (
        torch.rand(2, 2, 5, 5, generator=generator, dtype=torch.float64),
        torch.rand(3, 2, 3, 3, generator=generator, dtype=torch.float64),
    )
    w.requires_grad_()
    factor, ones = torch.tensor(2.0, dtype=torch.float64, requires_grad=True), torch.ones(3, dtype=torch.float64)

    def by_factor_and_weight(upstream_only):
        with twice_differentiable_layers(upstream_only):
            y = F.batch_norm(F.conv2d(x, w), None, None, ones, ones, training=True)
            (gradient,) = torch.autograd.grad(factor * y.pow(3).sum(), w, create_graph=True)
        direction = torch.arange(gradient.numel(), dtype=torch.float64).view_as(gradient)
        return torch.autograd.grad(gradient, (factor, w), direction, materialize_grads=True)

    whole, part = by_factor_and_weight(False), by_factor_and_weight(True)
    torch.testing.assert_close(part[0], whole[0], rtol=1e-12, atol=0)
    assert whole[1].abs().max() > 0 and not torch.allclose(part[1], whole[1])
