"""Convolutions whose double backward costs what it must, for the Hessian-vector products of HGKT.

A convolution y = x * w is linear in x and in w, so with upstream gradient g and directions h_x, h_w of its gradients

    d/dg  = h_x * w + x * h_w,    d/dx = backward_input(g, h_w),    d/dw = backward_weight(g, h_x)

which are two forward convolutions and one of each backward kind. torch's own double backward forms d/dw as a convolution whose kernel is
as large as the image instead, which on a CPU made the whole of it up to 1.8 times slower (UNet, 128 x 128; benchmarks/hgkt_step.py).
The reference is torch's own convolution; tests compare values, gradients and second derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]  # stride, padding, dilation, transposed, output_padding, groups


class twice_differentiable_convolutions(TorchFunctionMode):
    """Within the block every 2-D convolution and transposed convolution (numeric padding) has the double backward of this file.

    Only second derivatives are provided: a third raises torch's error.
    """

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is F.conv2d:
            return _conv2d(function, *args, **(kwargs or {}))
        if function is F.conv_transpose2d:
            return _conv_transpose2d(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _conv2d(own: Any, x: Tensor, w: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups: int = 1) -> Tensor:
    if isinstance(padding, str):
        return own(x, w, bias, stride, padding, dilation, groups)
    return _convolve(x, w, bias, (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups))


def _conv_transpose2d(
    x: Tensor, w: Tensor, bias: Tensor | None = None, stride=1, padding=0, output_padding=0, groups: int = 1, dilation=1
) -> Tensor:
    return _convolve(x, w, bias, (_pair(stride), _pair(padding), _pair(dilation), True, _pair(output_padding), groups))


def _convolve(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    result = _Convolution.apply(x, w, geometry)
    return result if bias is None else result + bias[:, None, None]


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return torch.ops.aten.convolution(x, w, None, *geometry)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return *_ConvolutionBackward.apply(upstream, *ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad[:2]), None


class _ConvolutionBackward(Function):
    @staticmethod
    def forward(ctx: Any, upstream: Tensor, x: Tensor, w: Tensor, geometry: Geometry, needed: tuple[bool, bool]) -> tuple:
        ctx.save_for_backward(upstream, x, w)
        ctx.geometry = geometry
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
        if needed[1] and toward_w is not None:
            of_x = _gradients(upstream, x, toward_w, geometry, (True, False))[0]
        if needed[2] and toward_x is not None:
            of_w = _gradients(upstream, toward_x, w, geometry, (False, True))[1]
        return of_upstream, of_x, of_w, None, None


def _gradients(upstream: Tensor, x: Tensor, w: Tensor, geometry: Geometry, needed: tuple[bool, bool]) -> tuple:
    return torch.ops.aten.convolution_backward(upstream, x, w, None, *geometry, [*needed, False])[:2]
