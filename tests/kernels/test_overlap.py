"""Soft Dice loss by hand, at its limits and in its gradient; its Triton form against the reference in float64.

The `triton` tests run on a GPU, and on the CPU in a process of their own where TRITON_INTERPRET=1 makes Triton interpret its kernels.
The interpreter takes all dtypes used here, but cuts bfloat16 off where a GPU rounds: the tolerance allows either.
"""

import importlib
import math
import os
import subprocess
import sys

import pytest
import torch

from vfmgl_lib.kernels import overlap
from vfmgl_lib.kernels.overlap import SMOOTH, soft_dice_form, soft_dice_loss, soft_dice_loss_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TRITON_MISSING = "Triton is not installed" if overlap.triton is None else ""
# dtype of the logits: error of the loss (float32 throughout), error of the gradient as a share of its largest value
TOLERANCES = {torch.float32: (5e-7, 5e-6), torch.float16: (5e-7, 1e-3), torch.bfloat16: (5e-7, 8e-3)}
SIDES = {1: (1, 1), 7: (7, 1), 63: (7, 9), 257: (1, 257)}  # pixels: H, W


def on_triton(test):
    if INTERPRETED:
        return test
    reason = TRITON_MISSING or "no CUDA device; test_triton_under_its_interpreter runs this on the CPU"
    return pytest.mark.gpu(pytest.mark.skipif(bool(TRITON_MISSING) or not torch.cuda.is_available(), reason=reason)(test))


@pytest.fixture
def poisoned(monkeypatch):
    """Buffers come full of NaN: what a kernel does not write shows."""
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.full(shape, math.nan, **options))
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, math.nan))


def draw(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits.to(DEVICE, dtype), target.to(DEVICE)


def loss_and_gradient(function, logits, target):
    """Loss and its gradient under an upstream gradient of 1.7, both float64 on the CPU."""
    logits = logits.detach().requires_grad_()
    loss = function(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, 1.7))
    return loss.detach().double().cpu(), gradient.double().cpu()


def assert_equals_reference(logits, target):
    assert soft_dice_form(logits, target) == "triton"
    loss, gradient = loss_and_gradient(soft_dice_loss, logits, target)
    expected, expected_gradient = loss_and_gradient(soft_dice_loss_reference, logits.double(), target)
    of_loss, of_gradient = TOLERANCES[logits.dtype]
    torch.testing.assert_close(loss, expected, rtol=0, atol=of_loss)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=of_gradient * expected_gradient.abs().max().item())


def test_triton_under_its_interpreter():
    if TRITON_MISSING:
        pytest.skip(TRITON_MISSING)
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-k", "on_triton"]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout, run.stdout


@on_triton
@pytest.mark.parametrize("classes", [2, 3, 5, 8])
@pytest.mark.parametrize("pixels", SIDES)
def test_on_triton_equals_the_reference(poisoned, pixels, classes):
    assert_equals_reference(*draw((2, classes, *SIDES[pixels])))


@on_triton
def test_on_triton_several_blocks(poisoned):
    assert_equals_reference(*draw((2, 5, 31, 33)))


@on_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 3])
def test_on_triton_half_precisions(poisoned, dtype, classes):
    logits, target = draw((2, classes, 7, 9), dtype)
    assert_equals_reference(logits, target)
    assert soft_dice_loss(logits, target).dtype == torch.float32


@on_triton
def test_on_triton_views(poisoned):
    """Channels last, every second column, transposed, classes cut out of more, and a target expanded from one sample."""
    logits, target = draw((2, 3, 7, 18))
    assert_equals_reference(logits.to(memory_format=torch.channels_last), target)
    assert_equals_reference(logits[..., ::2], target[..., ::2])
    assert_equals_reference(logits.transpose(2, 3), target.transpose(1, 2))
    assert_equals_reference(logits[:, 1:], target.clamp(max=1))
    assert_equals_reference(logits, target[:1].expand(2, -1, -1))


@on_triton
def test_on_triton_empty_masks_and_sure_logits(poisoned):
    logits, target = draw((2, 2, 7, 9))
    assert_equals_reference(logits, torch.zeros_like(target))
    assert_equals_reference(100 * logits, target)
    assert_equals_reference(torch.zeros_like(logits), target)


@on_triton
def test_on_triton_second_derivatives(poisoned):
    logits, target = draw((2, 3, 7, 9))
    direction, products = draw((2, 3, 7, 9), seed=1)[0], []
    for function, dtype in ((soft_dice_loss, torch.float32), (soft_dice_loss_reference, torch.float64)):
        z = logits.to(dtype).requires_grad_()
        upstream = torch.tensor(1.7, device=DEVICE, dtype=dtype, requires_grad=True)
        (first,) = torch.autograd.grad(function(z, target), z, upstream, create_graph=True)
        products.append((first, *torch.autograd.grad((first * direction.to(dtype)).sum(), (z, upstream))))
    for one, other in zip(*products, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6 * other.abs().max().item())


@on_triton
def test_on_triton_a_step_through_a_step():
    """HGKT's use: the derivative of the loss after a virtual step on the loss itself by something that shaped the step."""
    logits, target = draw((2, 3, 7, 9))
    results = []
    for function, dtype in ((soft_dice_loss, torch.float32), (soft_dice_loss_reference, torch.float64)):
        scale = torch.tensor(0.7, device=DEVICE, dtype=dtype, requires_grad=True)
        weight = torch.ones(3, 1, 1, device=DEVICE, dtype=dtype, requires_grad=True)
        loss = function(logits.to(dtype) * weight * scale, target)
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        outer = function(logits.to(dtype) * (weight - gradient), target)
        results.append(torch.autograd.grad(outer, scale)[0].double())
    assert results[1].abs() > 1e-5
    torch.testing.assert_close(*results, rtol=1e-4, atol=0)


@on_triton
def test_on_triton_repeats_and_shows_nan_and_bad_indices():
    logits, target = draw((2, 3, 31, 33))
    one, other = (loss_and_gradient(soft_dice_loss, logits, target) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    for index in (3, 255, -1):
        wrong = target.clone()
        wrong[1, 5, 7] = index
        assert soft_dice_loss(logits, wrong).isnan()
    logits[0, 1, 2, 3] = math.nan
    assert soft_dice_loss(logits, target).isnan()


@on_triton
def test_on_triton_keeps_to_what_it_can():
    logits, target = draw((2, 9, 3, 3))
    assert soft_dice_form(logits, target) == "reference"
    assert soft_dice_form(logits[:, :3].double(), target) == "reference"
    assert soft_dice_form(logits[:, :3], target.int()) == "reference"


def test_without_triton_the_reference_serves(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # import triton raises ImportError
    try:
        module = importlib.reload(overlap)
        logits, target = torch.randn(2, 3, 5, 5), torch.zeros(2, 5, 5, dtype=torch.int64)
        assert module.triton is None and module.soft_dice_form(logits, target) == "reference"
        assert 0 < module.soft_dice_loss(logits, target) < 1
    finally:
        monkeypatch.undo()
        importlib.reload(overlap)


def test_on_the_cpu_the_reference_serves_and_halves_give_float32():
    logits, target = torch.zeros(2, 2, 256, 256), torch.zeros(2, 256, 256, dtype=torch.int64)
    if not INTERPRETED:
        assert soft_dice_form(logits, target) == "reference"
    loss = soft_dice_loss(logits.half(), target)  # sums beyond float16's 65504
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 - (2 / 3 + 0) / 2, abs=1e-6)


def test_by_hand_with_sums_over_batch_and_pixels():
    """Uniform probabilities, 1 of 4 pixels foreground: overlap 0.5 and 1.5, totals 2 + 1 and 2 + 3."""
    target = torch.tensor([[[1, 0]], [[0, 0]]])
    foreground, background = (2 * 0.5 + SMOOTH) / (3 + SMOOTH), (2 * 1.5 + SMOOTH) / (5 + SMOOTH)
    assert soft_dice_loss(torch.zeros(2, 2, 1, 2), target).item() == pytest.approx(1 - (foreground + background) / 2, abs=1e-6)


def test_perfect_wrong_and_empty():
    target = torch.tensor([[[1, 0], [0, 1]]])
    sure = torch.stack([1 - target, target], 1) * 100.0
    assert soft_dice_loss(sure, target).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(-sure, target).item() == pytest.approx(1, abs=1e-4)
    empty = torch.zeros_like(target)
    assert soft_dice_loss(torch.stack([1 - empty, empty], 1) * 100.0, empty).item() == pytest.approx(0, abs=1e-6)


def test_gradient():
    logits = torch.randn(2, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 3, 5))
    assert torch.autograd.gradcheck(lambda z: soft_dice_loss(z, target), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: soft_dice_loss(z, target), (logits,))


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"got \(1, 2, 4, 4\) and \(1, 4, 5\)"):
        soft_dice_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64))
