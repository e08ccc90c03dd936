"""Temperature KL against torch's own and against a sum written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from vfmgl_lib.kernels.distillation import temperature_kl


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
    temperature_kl(student, teacher, 2.0).sum().backward()
    assert teacher.grad is None


def test_equal_logits_give_zero_and_bad_input_is_named():
    logits = torch.randn(2, 3)
    assert temperature_kl(logits, logits, 4.0).abs().max() == 0
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 2\)"):
        temperature_kl(logits, logits[:, :2], 4.0)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        temperature_kl(logits, logits, 0.0)
