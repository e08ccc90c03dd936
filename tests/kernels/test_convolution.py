"""The convolutions of the virtual steps against torch's own: values, gradients, second derivatives."""

import pytest
import torch
import torch.nn.functional as F

from vfmgl_lib.kernels.convolution import twice_differentiable_convolutions

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
    with twice_differentiable_convolutions():
        result = everything()
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_mode_is_really_used_and_ends_with_its_block():
    x, w = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 3, 3, requires_grad=True)
    with twice_differentiable_convolutions():
        assert "_Convolution" in type(F.conv2d(x, w).grad_fn).__name__
    assert type(F.conv2d(x, w).grad_fn).__name__ == "ConvolutionBackward0"


def test_parts_that_are_not_asked_for_are_not_computed():
    """Only the second derivative by the upstream gradient: the path of HGKT's first virtual step."""
    x, w = torch.rand(1, 2, 5, 5, dtype=torch.float64), torch.rand(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    with twice_differentiable_convolutions():
        (gradient,) = torch.autograd.grad((scale * F.conv2d(x, w)).sum(), w, create_graph=True)
    (derivative,) = torch.autograd.grad(gradient, scale, torch.ones_like(gradient))
    assert derivative.item() == pytest.approx(gradient.sum().item() / 2)
