"""Convolutions and batch normalisation whose double backward costs what it must, for the Hessian-vector products of HGKT.

A convolution y = x * w is linear in x and in w, so with upstream gradient g and directions h_x, h_w of its gradients

    d/dg  = h_x * w + x * h_w,    d/dx = backward_input(g, h_w),    d/dw = backward_weight(g, h_x)

which are two forward convolutions and one of each backward kind. torch's own double backward forms d/dw as a convolution whose kernel is
as large as the image instead, which on a CPU made the whole of it up to 1.8 times slower (UNet, 128 x 128; benchmarks/hgkt_step.py).

Batch normalisation in train mode, y = gamma xh + beta with xh = r (x - mean), r = (var + eps)^-1/2 and m() the mean over batch and pixels:
with a = m(g), b = m(g xh), c = m(h_x), d = m(h_x xh), e = m(g h_x) its double backward is affine in four maps,

    d/dg = gamma r (h_x - c - xh d) + h_gamma xh + h_beta           (the first part is the ordinary backward of h_x)
    d/dx = -gamma r^2 [ d g + b h_x + (e - ac - 3bd) xh - (ad + bc) ] + h_gamma r (g - a - xh b)
    d/dgamma = n r (e - ac - bd)

four passes over the maps where torch's own, written in elementary operations, takes about thirty.

The hard sigmoid (MobileNetV3's gates) has no double backward in torch at all; it is piecewise linear, so that only the upstream
gradient's is left.

Max pooling is torch's own on a copy in channels_last order: on a CPU its kernel is three times as fast there, the copies included.
No library does this: torch's double backward, which torch.func uses too, is the slow one. The operators of torch.ops.aten, which are not
documented, are called in this file alone. The references are torch's own layers; tests compare values, gradients and second derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]  # stride, padding, dilation, transposed, output_padding, groups


class twice_differentiable_layers(TorchFunctionMode):
    """Within the block 2-D convolutions (numeric padding), transposed ones, affine batch normalisation in train mode and the hard sigmoid
    have the double backward of this file, and 2-D max pooling its forward.

    Only second derivatives are provided: a third raises torch's error.

    Args:
        upstream_only: second derivatives flow through the upstream gradients alone, those by the layers' inputs and parameters are left
            out: all that is needed, and a third of the cost, where gradients are to be differentiated by a factor of the loss.
    """

    def __init__(self, upstream_only: bool = False):
        super().__init__()
        self.upstream_only = upstream_only

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        layer = _LAYERS.get(function)
        if layer is None:
            return function(*args, **(kwargs or {}))
        return layer(self.upstream_only, *args, **(kwargs or {}))


def _conv2d(upstream_only: bool, x: Tensor, w: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    if isinstance(padding, str):
        return F.conv2d(x, w, bias, stride, padding, dilation, groups)
    return _convolve(x, w, bias, (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups), upstream_only)


def _conv_transpose2d(
    upstream_only: bool, x: Tensor, w: Tensor, bias: Tensor | None = None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
) -> Tensor:
    return _convolve(x, w, bias, (_pair(stride), _pair(padding), _pair(dilation), True, _pair(output_padding), groups), upstream_only)


def _convolve(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry, upstream_only: bool) -> Tensor:
    result = _Convolution.apply(x, w, geometry, upstream_only)
    return result if bias is None else result + bias[:, None, None]


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: Geometry, upstream_only: bool) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry, ctx.upstream_only = geometry, upstream_only
        return torch.ops.aten.convolution(x, w, None, *geometry)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        needed = ctx.needs_input_grad[:2]
        return *_ConvolutionBackward.apply(upstream, *ctx.saved_tensors, ctx.geometry, needed, ctx.upstream_only), None, None


class _ConvolutionBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, upstream: Tensor, x: Tensor, w: Tensor, geometry: Geometry, needed: tuple[bool, bool], upstream_only: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(upstream, x, w)
        ctx.geometry, ctx.upstream_only = geometry, upstream_only
        ctx.set_materialize_grads(False)
        return _gradients(upstream, x, w, geometry, needed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, toward_x: Tensor | None, toward_w: Tensor | None) -> tuple:
        (upstream, x, w), geometry, needed = ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad
        of_upstream = of_x = of_w = None
        if needed[0]:
            terms = [(toward_x, w)] * (toward_x is not None) + [(x, toward_w)] * (toward_w is not None)
            parts = [torch.ops.aten.convolution(a, b, None, *geometry) for a, b in terms]
            of_upstream = parts[0].add_(parts[1]) if len(parts) == 2 else parts[0] if parts else None
        if ctx.upstream_only:
            return of_upstream, None, None, None, None, None
        if needed[1] and toward_w is not None:
            of_x = _gradients(upstream, x, toward_w, geometry, (True, False))[0]
        if needed[2] and toward_x is not None:
            of_w = _gradients(upstream, toward_x, w, geometry, (False, True))[1]
        return of_upstream, of_x, of_w, None, None, None


def overruns(w: Tensor, stride: Sequence[int]) -> bool:
    """Whether a convolution's weight gradient must not be computed in channels_last order on a CPU.

    oneDNN 3.13 (torch 2.15) writes beyond its memory for 1 x 1 kernels with a stride and few input channels: the process ends, or goes on
    with damaged memory. Seen with 2 to 5 channels on a processor with AVX2 and no AVX-512; all below 8 are kept from it.

    Args:
        w: (out, in, height, width); of a transposed convolution (in, out, height, width).
        stride: by height and width.
    """
    return w.shape[2:] == (1, 1) and max(stride) > 1 and min(w.shape[:2]) < 8


def _gradients(upstream: Tensor, x: Tensor, w: Tensor, geometry: Geometry, needed: tuple[bool, bool]) -> tuple:
    if x.device.type == "cpu" and overruns(w, geometry[0]):
        # `contiguous` leaves the strides of a 1 x 1 kernel as they are, which still say channels_last.
        upstream, x, w = (tensor.new_empty(tensor.shape).copy_(tensor) for tensor in (upstream, x, w))
    return torch.ops.aten.convolution_backward(upstream, x, w, None, *geometry, [*needed, False])[:2]


def _batch_norm(
    upstream_only: bool,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or weight is None or bias is None or weight.dtype != x.dtype:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps, upstream_only)


class _BatchNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean, running_var, momentum: float, eps: float, upstream_only: bool
    ):
        y, mean, inverse_std = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.eps, ctx.upstream_only = eps, upstream_only
        return y

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        return *_BatchNormBackward.apply(upstream, *ctx.saved_tensors, ctx.eps, ctx.upstream_only), None, None, None, None, None


class _BatchNormBackward(Function):
    @staticmethod
    def forward(ctx: Any, upstream: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float, upstream_only: bool):
        of_x, of_weight, of_bias = _normalization_gradients(upstream, x, weight, mean, inverse_std, eps)
        ctx.save_for_backward(upstream, x, weight, mean, inverse_std, of_weight, of_bias)
        ctx.eps, ctx.upstream_only = eps, upstream_only
        ctx.set_materialize_grads(False)
        return of_x, of_weight, of_bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, toward_x: Tensor | None, toward_weight: Tensor | None, toward_bias: Tensor | None) -> tuple:
        upstream, x, weight, mean, r, of_weight, of_bias = ctx.saved_tensors
        toward_x = torch.zeros_like(x) if toward_x is None else toward_x
        toward_weight = torch.zeros_like(weight) if toward_weight is None else toward_weight
        toward_bias = torch.zeros_like(weight) if toward_bias is None else toward_bias
        of_upstream, d, c = _normalization_gradients(toward_x, x, weight, mean, r, ctx.eps)
        slope = toward_weight * r
        of_upstream.addcmul_(x, _per_channel(slope, x)).add_(_per_channel(toward_bias - slope * mean, x))
        if ctx.upstream_only:
            return of_upstream, None, None, None, None, None, None
        n = x.numel() // x.shape[1]
        a, b, c, d = of_bias / n, of_weight / n, c / n, d / n
        product = upstream * toward_x
        e = product.sum([axis for axis in range(x.dim()) if axis != 1]) / n
        scale = weight * r.square()
        of_normalized = -scale * (e - a * c - 3 * b * d) - slope * b
        constant = scale * (a * d + b * c) - slope * a - of_normalized * r * mean
        of_x = torch.mul(upstream, _per_channel(slope - scale * d, x), out=product)
        of_x.addcmul_(toward_x, _per_channel(-scale * b, x)).addcmul_(x, _per_channel(of_normalized * r, x))
        return of_upstream, of_x.add_(_per_channel(constant, x)), n * r * (e - a * c - b * d), None, None, None, None


def _normalization_gradients(upstream: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float) -> tuple:
    return torch.ops.aten.native_batch_norm_backward(upstream, x, weight, None, None, mean, inverse_std, True, eps, [True, True, True])


def _max_pool2d(
    upstream_only: bool, x: Tensor, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False, return_indices=False
) -> Tensor | tuple[Tensor, Tensor]:
    stride = kernel_size if stride is None else stride
    if return_indices or x.device.type != "cpu" or x.dim() != 4 or not x.is_contiguous():
        return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _MaxPool.apply(x, *(_pair(size) for size in (kernel_size, stride, padding, dilation)), ceil_mode)


class _MaxPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *geometry: Any) -> Tensor:
        y, indices = torch.ops.aten.max_pool2d_with_indices(x.contiguous(memory_format=torch.channels_last), *geometry)
        ctx.save_for_backward(x, indices.contiguous())
        ctx.geometry = geometry
        return y.contiguous()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        x, indices = ctx.saved_tensors
        return torch.ops.aten.max_pool2d_with_indices_backward(upstream, x, *ctx.geometry, indices), *[None] * len(ctx.geometry)


def _hardsigmoid(upstream_only: bool, x: Tensor, inplace: bool = False) -> Tensor:
    return x.copy_(_Hardsigmoid.apply(x)) if inplace else _Hardsigmoid.apply(x)


class _Hardsigmoid(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward((x > -3) & (x < 3))
        return F.hardsigmoid(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (slopes,) = ctx.saved_tensors
        return upstream * (slopes.to(upstream.dtype) / 6)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


_LAYERS: dict[Any, Any] = {
    F.conv2d: _conv2d,
    F.conv_transpose2d: _conv_transpose2d,
    F.batch_norm: _batch_norm,
    F.max_pool2d: _max_pool2d,
    F.hardsigmoid: _hardsigmoid,
}
