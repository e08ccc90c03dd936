"""Soft Dice loss by hand, at its limits and in its derivatives."""

import pytest
import torch

from vfmgl_lib.kernels.overlap import SMOOTH, foreground_dice, soft_dice_loss


def test_halves_give_float32():
    logits, target = torch.zeros(2, 2, 256, 256), torch.zeros(2, 256, 256, dtype=torch.int64)
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


def test_several_classes_by_definition_and_against_monai():
    from monai.losses import DiceLoss  # here: importing it takes seconds

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 4, (2, 6, 7), generator=generator)  # class 4 is nowhere
    probability, terms = logits.softmax(1), []
    for place in range(5):
        p, y = probability[:, place], (target == place).double()
        terms.append((2 * (p * y).sum() + SMOOTH) / (p.sum() + y.sum() + SMOOTH))
    loss = soft_dice_loss(logits, target)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(1 - sum(terms).item() / 5, abs=1e-12)
    monai = DiceLoss(softmax=True, to_onehot_y=True, batch=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    assert loss.item() == pytest.approx(monai(logits, target[:, None]).item(), abs=1e-9)


def test_dice_of_several_classes_is_their_mean_over_the_foreground():
    target = torch.tensor([[[0, 1, 1, 2]], [[0, 0, 1, 1]]])
    predicted = torch.tensor([[[0, 1, 2, 2]], [[0, 0, 1, 1]]])
    expected = [(2 / 3 + 2 / 3 + 1) / 3, 1.0]  # class 3 is in neither
    assert foreground_dice(predicted, target, 4).tolist() == pytest.approx(expected, abs=1e-12)
    assert foreground_dice(predicted % 2, target % 2).tolist() == pytest.approx([2 / 3, 1.0], abs=1e-12)


def test_gradient():
    logits = torch.randn(2, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 3, 5))
    assert torch.autograd.gradcheck(lambda z: soft_dice_loss(z, target), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: soft_dice_loss(z, target), (logits,))


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"got \(1, 2, 4, 4\) and \(1, 4, 5\)"):
        soft_dice_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64))
