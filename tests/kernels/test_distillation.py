"""Temperature KL against torch's own and against a sum written out by hand; its Triton form against the reference in float64.

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
import torch.nn.functional as F

from vfmgl_lib.kernels import distillation
from vfmgl_lib.kernels.distillation import temperature_kl, temperature_kl_form, temperature_kl_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TRITON_MISSING = "Triton is not installed" if distillation.triton is None else ""
# dtype of the logits: relative error of the KL (float32 throughout), error of the gradient as a share of its largest value
TOLERANCES = {torch.float32: (1e-6, 1e-6), torch.float16: (1e-6, 1e-3), torch.bfloat16: (1e-6, 8e-3), "extremes": (1e-6, 5e-6)}
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


def draw(shape, dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pair = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return tuple(logits.to(DEVICE, dtype) for logits in pair)


def value_and_gradient(function, student, teacher, temperature):
    """KL (B,) and its gradient under an upstream gradient of 0.5, 1.5, …, both float64 on the CPU."""
    student = student.detach().requires_grad_()
    value = function(student, teacher, temperature)
    upstream = torch.arange(len(value), device=value.device).to(value.dtype) + 0.5
    (gradient,) = torch.autograd.grad(value, student, upstream)
    return value.detach().double().cpu(), gradient.double().cpu()


def assert_equals_reference(student, teacher, temperature, tolerance=None):
    assert temperature_kl_form(student, teacher) == "triton"
    value, gradient = value_and_gradient(temperature_kl, student, teacher, temperature)
    expected, expected_gradient = value_and_gradient(temperature_kl_reference, student.double(), teacher.double(), temperature)
    of_value, of_gradient = TOLERANCES[tolerance or student.dtype]
    torch.testing.assert_close(value, expected, rtol=of_value, atol=0)
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
    assert_equals_reference(*draw((2, classes, *SIDES[pixels]), scale=3), 500.0)


@on_triton
@pytest.mark.parametrize("classes", [2, 3, 5, 8])
def test_on_triton_class_logits(poisoned, classes):
    assert_equals_reference(*draw((5, classes), scale=3), 1.0)


@on_triton
def test_on_triton_several_blocks(poisoned):
    student, teacher = draw((2, 5, 31, 33))
    for temperature in (1.0, 500.0):
        assert_equals_reference(student, teacher, temperature)


@on_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 3])
def test_on_triton_half_precisions(poisoned, dtype, classes):
    student, teacher = draw((2, classes, 7, 9), dtype, scale=2)
    assert_equals_reference(student, teacher, 5.0)
    assert_equals_reference(student, teacher.float(), 5.0)
    assert temperature_kl(student, teacher, 5.0).dtype == torch.float32


@on_triton
def test_on_triton_views(poisoned):
    """Channels last, every second column, transposed, and a teacher expanded from one sample."""
    student, teacher = draw((2, 3, 7, 18))
    assert_equals_reference(student.to(memory_format=torch.channels_last), teacher, 5.0)
    assert_equals_reference(student[..., ::2], teacher.to(memory_format=torch.channels_last)[..., ::2], 5.0)
    assert_equals_reference(student.transpose(2, 3), teacher.transpose(2, 3), 5.0)
    assert_equals_reference(student, teacher[:1].expand(2, -1, -1, -1), 5.0)
    assert_equals_reference(student[:, 1:], teacher[:, 1:], 5.0)


@on_triton
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([0.0, 200.0], [0.0, 0.0]),  # exp(200) leaves float32
        ([0.0, -3000.0], [0.0, 3000.0]),
        ([0.0, 30.0], [0.0, -20.0]),
        ([0.0, -2.0], [0.0, -16.0]),
        ([1003.0, 1004.0, 1000.0], [3.0, 4.25, 0.125]),  # differences share 1000, which cancels
    ],
)
def test_on_triton_extremes(student, teacher):
    student, teacher = (torch.tensor([logits], device=DEVICE) for logits in (student, teacher))
    assert_equals_reference(student, teacher, 1.0, "extremes")


@on_triton
def test_on_triton_second_derivatives(poisoned):
    for shape in ((2, 3, 7, 9), (4, 5)):
        student, teacher = draw(shape)
        products = []
        for function, dtype in ((temperature_kl, torch.float32), (temperature_kl_reference, torch.float64)):
            z = student.to(dtype).requires_grad_()
            upstream = torch.linspace(0.5, 1.5, shape[0], device=DEVICE, dtype=dtype).requires_grad_()
            (first,) = torch.autograd.grad(function(z, teacher.to(dtype), 2.0), z, upstream, create_graph=True)
            products.append((first, *torch.autograd.grad((first * teacher.to(dtype)).sum(), (z, upstream))))
        for one, other in zip(*products, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@on_triton
def test_on_triton_equal_logits_repeats_and_nan():
    student, teacher = draw((2, 3, 31, 33))
    assert temperature_kl(student, student, 4.0).abs().max() == 0
    one, other = (value_and_gradient(temperature_kl, student, teacher, 4.0) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    student[0, 1, 2, 3] = math.nan
    assert temperature_kl(student, teacher, 4.0).isnan().tolist() == [True, False]


@on_triton
def test_on_triton_keeps_to_what_it_can():
    student, teacher = draw((2, 9, 3, 3))
    assert temperature_kl_form(student, teacher) == "reference"
    assert temperature_kl_form(student[:, :3].double(), teacher[:, :3].double()) == "reference"
    assert temperature_kl(student[:0, :2], teacher[:0, :2], 1.0).shape == (0,)


def test_without_triton_the_reference_serves(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # import triton raises ImportError
    try:
        module = importlib.reload(distillation)
        student = torch.randn(2, 3, 5, 5)
        assert module.triton is None and module.temperature_kl_form(student, student) == "reference"
        assert module.temperature_kl(student, 2 * student, 3.0).shape == (2,)
    finally:
        monkeypatch.undo()
        importlib.reload(distillation)


def test_on_the_cpu_the_reference_serves_and_halves_give_float32():
    student, teacher = torch.randn(2, 2, 256, 256), torch.zeros(2, 2, 256, 256)
    if not INTERPRETED:
        assert temperature_kl_form(student, teacher) == "reference"
    value = temperature_kl(60 * student.half(), teacher.half(), 1.0)  # sums beyond float16's 65504
    assert value.dtype == torch.float32 and value.min() > 65504
    assert value.isfinite().all()


def test_direction_and_temperature_by_hand():
    """Teacher (0, tau ln 3) -> p = (1/4, 3/4); student uniform: KL(p || q) = 1/4 ln(1/2) + 3/4 ln(3/2)."""
    teacher = torch.tensor([[0.0, 5 * math.log(3)]])
    value = temperature_kl(torch.zeros(1, 2), teacher, 5.0)
    assert value.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 2), (2, 5), (2, 3, 7, 9)])
def test_equals_torch_per_sample(shape):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = F.kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(temperature_kl(student, teacher, 3.0), expected)


def test_gradient_flows_to_the_student_alone_and_is_right():
    student, teacher = (
        torch.randn(2, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(lambda z: temperature_kl(z, teacher, 2.0), (student,))
    assert torch.autograd.gradgradcheck(lambda z: temperature_kl(z, teacher, 2.0), (student,))
    temperature_kl(student, teacher, 2.0).sum().backward()
    assert teacher.grad is None


def test_equal_logits_give_zero_and_bad_input_is_named():
    logits = torch.randn(2, 3)
    assert temperature_kl(logits, logits, 4.0).abs().max() == 0
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 2\)"):
        temperature_kl(logits, logits[:, :2], 4.0)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        temperature_kl(logits, logits, 0.0)
