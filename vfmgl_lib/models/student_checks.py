"""What must hold of a student before it is trained: its input size, two values a channel, no randomness, second derivatives.

The paper's two students are held to this by tests; those out of timm are asked once in a process, on copies, without touching torch's
random numbers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vfmgl_lib.base.files import first_line
from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.kernels.twice_differentiable import twice_differentiable_layers
from vfmgl_lib.models.batch_norm import batch_norms
from vfmgl_lib.models.student_names import EXAMPLES, StudentError
from vfmgl_lib.models.students import STUDENTS, Student, build_student

SMALL_SIDES, SMALL_BATCH = (32, 64, 96, 128), 4  # of the images that derivatives are asked with: the smallest that the network takes
# Of the difference of gradients that second derivatives are held against, in float64. One that crosses the kink of a ReLU is off by the
# order of 1, so that the step is short: the differences are right to 1e-6 then, and one in a thousand crosses one.
STEP = 1e-9
TOLERANCE = 1e-4
OTHER = f"take another student, {EXAMPLES}"
DRAWS = 3  # of images and directions: an error must show in all of them


def check_student(name: str, width: int, image_size: int, *, twice: bool) -> None:
    """Whether a student out of timm can be trained at all; nothing is asked of the paper's two.

    Args:
        image_size: side of its input, pixels.
        twice: it must have second derivatives, as HGKT takes them.
    Raises: StudentError: naming student, layer and remedy.
    """
    if name not in STUDENTS:
        _check_timm_student(name, width, image_size, twice)


@functools.cache
def _check_timm_student(name: str, width: int, image_size: int, twice: bool) -> None:
    with torch_seed(seed_sequence(0, "student check")):
        student = build_student(name, 2, width)
        check_input(student, name, image_size)
        check_determinism(student, name)
        if twice:
            check_second_derivatives(student, name)


def check_input(student: Student, name: str, image_size: int) -> None:
    """Raises: StudentError: a student that cannot take images of this side; nothing is computed."""
    empty = copy.deepcopy(student).to("meta").eval()
    try:
        empty(torch.zeros(2, 3, image_size, image_size, device="meta"))
    except (StudentError, RuntimeError, AssertionError) as error:
        raise StudentError(f"student {name}: cannot take images of {image_size} px ({error}); change data.image_size") from error


def check_batch(student: Student, name: str, images: int, image_size: int, whose: str) -> None:
    """Whether a batch of so many images has two values a channel at every batch normalisation; nothing is computed.

    Args:
        whose: the batch is, for the message.
    Raises: StudentError: naming the first layer that has one.
    """
    empty, short = copy.deepcopy(student).to("meta").eval(), list[str]()

    def look(place: str, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            short.append(place)

    for place, layer in batch_norms(empty).items():
        layer.register_forward_pre_hook(lambda _, inputs, place=place: look(place, inputs))
    empty(torch.zeros(images, 3, image_size, image_size, device="meta"))
    if short:
        raise StudentError(
            f"student {name}: batch normalisation {short[0]} has one value a channel in a batch of {images} image of {image_size} px "
            f"({whose}) and needs two; give more images, a larger data.image_size, or a student without batch normalisation"
        )


def check_determinism(student: Student, name: str) -> None:
    """Whether training draws no random number, and no layer changes a stage's map behind the stage.

    Raises: StudentError: naming the stage that changes.
    """
    images, before = _images(student, torch.float32, 0), torch.get_rng_state()
    model: Any = copy.deepcopy(student).train()  # one out of timm, with `net` and `table`
    with torch.no_grad():
        model(images)
        if not torch.equal(torch.get_rng_state(), before):
            raise StudentError(f"student {name}: draws random numbers in training, so that HGKT's steps would differ; {OTHER}")
        maps = model.eval().encode(images)
        for stage, tap, found in zip(model.stage_channels, model.table.taps, maps[:-1], strict=False):
            (alone,) = model.net.forward_intermediates(images, indices=[tap], stop_early=True, output_fmt="NCHW", intermediates_only=True)
            if not torch.equal(alone, found):
                raise StudentError(f"student {name}: a layer behind {stage} changes its map in place; {OTHER}")


def check_second_derivatives(student: Student, name: str) -> None:
    """Whether the gradient's own derivative is there and right: double backward against a difference of gradients, in float64.

    Raises: StudentError: naming the innermost layer without.
    """
    model = copy.deepcopy(student).double().train()
    _unsettle(list(model.parameters()), torch.Generator().manual_seed(0))
    found = [_missing(_loss_of_all(model, 0), list(model.parameters()), 0)]
    while found[-1] and len(found) < DRAWS:
        found.append(_missing(_loss_of_all(model, len(found)), list(model.parameters()), len(found)))
    if not found[-1]:
        return
    place, layer, reason = _culprit(model)
    raise StudentError(
        f"student {name}: layer {place or 'the network'} ({type(layer).__name__}) has no second derivative, which HGKT needs: "
        f"{reason or found[-1]}; {OTHER}, or a method without HGKT"
    )


class _NoFloat32(TorchFunctionMode):
    """Keeps a float64 network so where a layer asks for float32 (timm's LiteMLA): its rounding would drown a difference of gradients."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.float and args[0].dtype is torch.float64:
            return args[0]
        return func(*args, **(kwargs or {}))


def _loss_of_all(model: Student, seed: int) -> Callable[[], Tensor]:
    images = _images(model, torch.float64, seed)

    def loss() -> Tensor:
        logits, maps = model.forward_stages(images)
        return torch.stack([found.square().mean() for found in (logits, *maps)]).sum()

    return loss


def _unsettle(tensors: list[Tensor], generator: torch.Generator) -> None:
    """Moves tensors a little, in place: at their start many networks have zeros that put a ReLU or a maximum exactly on its kink."""
    with torch.no_grad():
        for tensor in tensors:
            tensor += 0.05 * (tensor.std(correction=0) + 0.1) * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)


def _missing(loss: Callable[[], Tensor], leaves: list[Tensor], seed: int) -> str:
    """Why the second derivatives of a loss by these tensors are not there; "" where they are. The tensors are as before."""
    generator = torch.Generator().manual_seed(seed)
    scales = [leaf.detach().square().mean().sqrt() + 0.01 for leaf in leaves]
    direction = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) * s for leaf, s in zip(leaves, scales, strict=True)]

    def gradients(create_graph: bool) -> tuple[Tensor, ...]:
        # As HGKT takes them, whose layers have double backwards of their own.
        with twice_differentiable_layers(), _NoFloat32():
            return torch.autograd.grad(loss(), leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True)

    def gradients_at(step: float) -> Tensor:
        with torch.no_grad():
            for leaf, along in zip(leaves, direction, strict=True):
                leaf += step * along
        found = gradients(False)
        with torch.no_grad():
            for leaf, along in zip(leaves, direction, strict=True):
                leaf -= step * along
        return torch.cat([(gradient * scale).flatten() for gradient, scale in zip(found, scales, strict=True)])

    try:
        product = torch.stack([(g * along).sum() for g, along in zip(gradients(True), direction, strict=True)]).sum()
        found = [torch.zeros_like(leaf) for leaf in leaves]
        if product.requires_grad:
            found = list(torch.autograd.grad(product, leaves, allow_unused=True, materialize_grads=True))
    except RuntimeError as error:
        return first_line(error)
    expected = (gradients_at(STEP) - gradients_at(-STEP)) / (2 * STEP)
    given = torch.cat([(part * scale).flatten() for part, scale in zip(found, scales, strict=True)])
    size = float(expected.norm())
    if float((given - expected).norm()) <= TOLERANCE * size + 1e-9:
        return ""
    return f"it is off by {float((given - expected).norm()) / max(size, 1e-9):.0%} of itself"


def _culprit(model: Student) -> tuple[str, nn.Module, str]:
    """Name, layer and reason of the innermost module that fails alone on the inputs that it has in the network; else the network itself."""
    calls: dict[str, list[Tensor]] = {}

    def keep(place: str, inputs: tuple) -> None:
        if inputs and all(isinstance(value, Tensor) and value.is_floating_point() for value in inputs):
            calls.setdefault(place, [value.detach().clone() for value in inputs])

    loss = _loss_of_all(model, 0)
    for place, module in list(model.named_modules())[1:]:
        module.register_forward_pre_hook(lambda _, inputs, place=place: keep(place, inputs))
    with torch.no_grad():
        loss()
    generator = torch.Generator().manual_seed(1)
    for place in sorted(calls, key=lambda place: -place.count(".")):  # Python's sort keeps the order of the calls
        module, inputs = model.get_submodule(place), calls[place]
        _unsettle(inputs, generator)
        if reason := _missing(_loss_of_one(module, inputs), [*inputs, *module.parameters()], 0):
            return place, module, reason
    return "", model, ""


def _loss_of_one(module: nn.Module, inputs: list[Tensor]) -> Callable[[], Tensor]:
    for value in inputs:
        value.requires_grad_()

    def loss() -> Tensor:
        out = module(*(value.clone() for value in inputs))  # a layer may work in place
        return torch.stack([part.square().mean() for part in ([out] if isinstance(out, Tensor) else out)]).sum()

    return loss


def _images(student: Student, dtype: torch.dtype, seed: int) -> Tensor:
    empty = copy.deepcopy(student).to("meta").eval()
    for side in SMALL_SIDES:
        try:
            empty(torch.zeros(1, 3, side, side, dtype=dtype, device="meta"))
        except (StudentError, RuntimeError, AssertionError):
            continue
        return torch.rand(SMALL_BATCH, 3, side, side, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    raise StudentError(f"a student that takes no square image of {', '.join(map(str, SMALL_SIDES))} px cannot be asked for its derivatives")
