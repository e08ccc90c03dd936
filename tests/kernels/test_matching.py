"""The Gram form of pair matching against its direct definition: values, gradients, second derivatives."""

import pytest
import torch

from vfmgl_lib.kernels.matching import matching_form, pair_matching, pair_matching_reference, prepare_teacher

# (B, M, C_t, g), (C_n, H, W): which form these sizes take
CASES = {
    "gram, larger student": ((2, 3, 5, 4), (3, 9, 11), "gram"),
    "gram, finer teacher": ((2, 1, 4, 13), (2, 7, 7), "gram"),
    "direct, few pixels": ((3, 2, 6, 4), (63, 3, 3), "direct"),
    "direct, coarser teacher": ((1, 2, 3, 2), (257, 7, 7), "direct"),
    "one pixel": ((2, 1, 3, 1), (1, 1, 1), "gram"),
    "one channel, large map": ((1, 1, 7, 3), (1, 31, 33), "gram"),
}


def _inputs(teacher_shape, student_shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, blocks, channels, grid = teacher_shape

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    teacher = draw(batch, blocks, channels, grid, grid) + 0.5
    student = draw(batch, *student_shape).requires_grad_()
    weight = draw(blocks, channels, student_shape[0]).requires_grad_()
    bias = draw(blocks, channels).requires_grad_()
    channel_weights = draw(batch, blocks, channels).softmax(-1).requires_grad_()
    pair_weights = (6 * torch.rand(batch, blocks, generator=generator, dtype=dtype)).requires_grad_()
    return teacher, student, weight, bias, channel_weights, pair_weights


def _derivatives(function, inputs):
    """Value, gradients under an upstream gradient that is not 1, and the gradients of a weighted sum of those gradients."""
    generator = torch.Generator().manual_seed(1)
    value = function(*inputs)
    upstream = torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5
    leaves = inputs[1:]
    first = torch.autograd.grad(value, leaves, upstream, create_graph=True)
    directions = [torch.rand(g.shape, generator=generator, dtype=g.dtype) for g in first]
    second = torch.autograd.grad(sum((g * d).sum() for g, d in zip(first, directions, strict=True)), leaves)
    return value, first, second


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_in_value_and_two_derivatives(case):
    teacher, student, form = CASES[case]
    inputs = _inputs(teacher, student)
    assert matching_form(teacher[-1], student[1:], student[0]) == form
    fast, reference = _derivatives(pair_matching, inputs), _derivatives(pair_matching_reference, inputs)
    torch.testing.assert_close(fast[0], reference[0], rtol=1e-11, atol=1e-11)
    for order in (1, 2):
        for one, other in zip(fast[order], reference[order], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_float32_stays_within_the_stated_tolerance():
    inputs = _inputs((2, 4, 32, 16), (16, 56, 56), torch.float32)
    reference = pair_matching_reference(*(tensor.double() for tensor in inputs))
    torch.testing.assert_close(pair_matching(*inputs).double(), reference, rtol=1e-6, atol=0)


def test_hand_computed_case():
    """One channel, constant maps: (3 - 2 * 1 - 0.5)^2 * 0.25 * 4 = 0.25."""
    teacher, student = torch.full((1, 1, 1, 2, 2), 3.0), torch.ones(1, 1, 5, 5)
    arguments = (torch.full((1, 1, 1), 2.0), torch.full((1, 1), 0.5), torch.full((1, 1, 1), 0.25), torch.full((1, 1), 4.0))
    for function in (pair_matching, pair_matching_reference):
        assert function(teacher, student, *arguments).item() == pytest.approx(0.25, abs=1e-6)


def test_prepared_terms_and_views_give_the_same():
    teacher, student, *rest = _inputs((2, 3, 5, 4), (3, 9, 11))
    expected = pair_matching(teacher, student, *rest)
    terms = prepare_teacher(teacher, (9, 11), 3)
    assert torch.equal(pair_matching(terms, student, *rest), expected)
    strided = student.detach().transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    torch.testing.assert_close(pair_matching(terms, strided, *rest), expected)


def test_the_teacher_gets_no_gradient():
    teacher, student, *rest = _inputs((1, 1, 3, 2), (2, 5, 5))
    teacher.requires_grad_()
    pair_matching(teacher, student, *rest).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (1, (3, 3, 9, 11), r"student must be .* B = 2"),
        (2, (3, 5, 4), r"weight must be \(M, C_t, C_n\) = \(3, 5, 3\), got \(3, 5, 4\)"),
        (3, (3, 4), r"bias must be \(M, C_t\) = \(3, 5\), got \(3, 4\)"),
        (4, (2, 3, 6), r"channel_weights must be .* = \(2, 3, 5\), got \(2, 3, 6\)"),
        (5, (2, 4), r"pair_weights must be \(B, M\) = \(2, 3\), got \(2, 4\)"),
    ],
)
@pytest.mark.parametrize("function", [pair_matching, pair_matching_reference])
def test_wrong_shapes_are_named(function, index, shape, message):
    inputs = list(_inputs((2, 3, 5, 4), (3, 9, 11)))
    inputs[index] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        function(*inputs)


def test_terms_of_another_size_are_refused():
    teacher, student, *rest = _inputs((2, 3, 5, 4), (3, 9, 11))
    with pytest.raises(ValueError, match=r"prepared for \(9, 9\), the student stage is \(9, 11\)"):
        pair_matching(prepare_teacher(teacher, (9, 9), 3), student, *rest)
    with pytest.raises(ValueError, match=r"teacher must be \(B, M, C_t, g, g\)"):
        prepare_teacher(teacher[:, 0], (9, 9), 3)
