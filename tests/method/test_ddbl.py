"""DDBL: the divergence is the written one, what is kept moves free parameters only, what is dropped leaves no trace."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from vfmgl_lib.kernels.distillation import temperature_kl
from vfmgl_lib.kernels.overlap import soft_dice_loss
from vfmgl_lib.method.ddbl import (
    deduction_step,
    effective_temperature,
    lowest_share,
    margin_to_drop,
    shared_divergence,
    untouched_divergence,
)
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.students import ResNet18, UNet, set_training_mode

CASES = {"resnet18": (ResNet18, F.cross_entropy, "endometrial"), "unet": (UNet, soft_dice_loss, "nuclei")}


def _models(kind):
    torch.manual_seed(0)
    build, loss, task = CASES[kind]
    student, shared = build(2, 4), build(2, 4)
    with torch.no_grad():  # no zeros (as in a residual block's last BN), which would hide that something learns
        for parameter in [*student.parameters(), *shared.parameters()]:
            parameter += 0.05 * torch.randn_like(parameter)
    shared.eval().requires_grad_(False)
    images = torch.rand(4, 3, 32, 32)
    target = torch.randint(0, 2, (4, 32, 32) if kind == "unet" else (4,))
    return student, shared, images, target, loss, load_settings(task, "paper").deduction


def _step(student, shared, images, target, loss, settings, threshold, **how):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    return deduction_step(
        student,
        shared,
        images,
        target,
        optimizer=optimizer,
        task_loss=loss,
        threshold=threshold,
        settings=settings,
        **how,
    )


@pytest.mark.parametrize("kind", CASES)
def test_divergence_equals_the_hand_written_one(kind):
    """KL(shared || shared head on local features), softened, per pixel and summed, without factor tau^2."""
    student, shared, images, _, _, settings = _models(kind)
    student.eval()
    maps = student.encode(images)
    tau = 5.0 if kind == "resnet18" else 500 * 32 / 256
    p = (shared(images).double() / tau).softmax(1)
    q = (shared.head_from_stages(maps).double() / tau).softmax(1)
    expected = (p * (p / q).log()).flatten(1).sum(1)
    torch.testing.assert_close(shared_divergence(shared, maps, images, settings), expected.float(), rtol=1e-5, atol=0)
    assert expected.min() > 0


def test_pixel_mean_keeps_its_own_temperature():
    _, shared, images, _, _, settings = _models("unet")
    logits = shared(images)
    assert effective_temperature(settings, logits) == pytest.approx(500 * 32 / 256)
    mean = settings.model_copy(update={"reduction": "pixel_mean", "temperature": 2.0})
    assert effective_temperature(mean, logits) == 2.0


@pytest.mark.parametrize("kind", CASES)
def test_a_batch_built_to_be_kept_moves_free_parameters_only(kind):
    student, shared, images, target, loss, settings = _models(kind)
    frozen = tuple(student.stages)[:2]
    set_training_mode(student, frozen)
    before, shared_before = copy.deepcopy(student.state_dict()), copy.deepcopy(shared.state_dict())
    record = _step(student, shared, images, target, loss, settings, threshold=4e6)
    assert record.kept and record.divergence <= record.threshold == 4e6
    still = {name for name, tensor in student.state_dict().items() if torch.equal(tensor, before[name])}
    of_frozen = {
        name for stage in frozen for module in student.stages[stage] for name in student.state_dict() if _belongs(student, module, name)
    }
    assert of_frozen and of_frozen <= still, "a frozen stage moved, BN statistics included"
    trained = {name for name, p in student.named_parameters() if name not in of_frozen}
    assert not trained & still, "a free parameter stood still"
    assert all(torch.equal(tensor, shared_before[name]) for name, tensor in shared.state_dict().items())
    assert all(p.grad is None for p in shared.parameters())


def _belongs(student, module, name):
    prefix = next(path for path, candidate in student.named_modules() if candidate is module)
    return name.startswith(prefix + ".")


@pytest.mark.parametrize("kind", CASES)
def test_a_batch_built_to_be_dropped_leaves_no_trace(kind):
    student, shared, images, target, loss, settings = _models(kind)
    set_training_mode(student)
    before = copy.deepcopy(student.state_dict())
    record = _step(student, shared, images, target, loss, settings, threshold=0.0)
    assert not record.kept and record.divergence > record.threshold == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert _step(student, shared, images, target, loss, settings, threshold=0.0, decision=True).kept  # HGKT+KD keeps every batch


def test_loss_is_the_weighted_sum():
    """The update equals a hand-made one on alpha * task + (1 - alpha) * KL."""
    student, shared, images, target, loss, settings = _models("resnet18")
    settings = settings.model_copy(update={"task_share": 0.3})
    twin = copy.deepcopy(student)
    set_training_mode(student)
    _step(student, shared, images, target, loss, settings, threshold=4e6)
    optimizer = torch.optim.SGD(twin.train().parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    logits, maps = twin.forward_stages(images)
    (0.3 * loss(logits, target) + 0.7 * shared_divergence(shared, maps, images, settings).mean()).backward()
    optimizer.step()
    for one, other in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_freezing_is_renewed_not_added_up():
    student = UNet(2, 4)
    set_training_mode(student, ("encoder1", "encoder2"))
    set_training_mode(student, ("encoder3",))
    assert all(p.requires_grad for p in student.encoders[0].parameters()) and student.encoders[0].training
    assert not any(p.requires_grad for p in student.encoders[2].parameters()) and not student.encoders[2].training
    with pytest.raises(ValueError, match="stem"):
        set_training_mode(student, ("stem",))


def test_a_decision_is_carried_out_whatever_the_divergence():
    student, shared, images, target, loss, settings = _models("unet")
    set_training_mode(student)
    before = copy.deepcopy(student.state_dict())
    record = _step(student, shared, images, target, loss, settings, threshold=4e6, decision=False)
    assert not record.kept and record.divergence < record.threshold
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("kind", CASES)
def test_without_the_kl_the_step_is_that_of_alpha_times_the_task_loss(kind):
    student, shared, images, target, loss, settings = _models(kind)
    twin = copy.deepcopy(student)
    set_training_mode(student)
    record = _step(student, shared, images, target, loss, settings, threshold=4e6, task_only=True)
    optimizer = torch.optim.SGD(twin.train().parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    (settings.task_share * loss(twin(images), target)).backward()
    optimizer.step()
    assert record.divergence > 0 and settings.task_share < 1
    for one, other in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", CASES)
def test_tau_squared_multiplies_by_the_temperature_that_divides_the_logits(kind):
    student, shared, images, _, _, settings = _models(kind)
    maps = student.eval().encode(images)
    tau = effective_temperature(settings, shared(images))
    plain, squared = (
        shared_divergence(shared, maps, images, settings.model_copy(update={"tau_squared": choice})) for choice in (False, True)
    )
    torch.testing.assert_close(squared, tau**2 * plain)


@pytest.mark.parametrize("reduction", ["pixel_sum", "pixel_mean", "classification"])
@pytest.mark.parametrize("tau_squared", [False, True])
def test_no_batch_within_the_margin_can_be_dropped(reduction, tau_squared):
    """Logits of all sizes whose margins differ by the bound, root mean square: KL never exceeds kappa l, and comes near to it."""
    generator, side, local_loss = torch.Generator().manual_seed(0), 16, 0.3
    changes = {"tau_squared": tau_squared, "temperature": 5.0} | ({"reduction": reduction} if reduction.startswith("pixel") else {})
    settings = load_settings("nuclei", "paper").deduction.model_copy(update=changes)
    shape = (8, 2) if reduction == "classification" else (8, 2, side, side)
    margin = margin_to_drop(settings, local_loss, None if reduction == "classification" else side)
    largest = 0.0
    for size in (0.0, 1.0, 10.0, 100.0):
        for spread in (0.0, 1.0):
            shared = size * torch.randn(shape, generator=generator, dtype=torch.float64)
            apart = torch.ones(shape[:1] + shape[2:], dtype=torch.float64)
            apart += spread * torch.randn(apart.shape, generator=generator, dtype=torch.float64)
            apart *= margin / apart.square().mean().sqrt()
            local = shared.clone()
            local[:, 1] += apart
            tau = effective_temperature(settings, shared)
            divergence = temperature_kl(local, shared, tau)
            if reduction == "pixel_mean":
                divergence = divergence / side**2
            ratio = (divergence.mean() * (tau**2 if tau_squared else 1)).item() / (settings.keep_ratio * local_loss)
            assert ratio <= 1 + 1e-9
            largest = max(largest, ratio)
    assert largest > 0.6, "the bound is far from what can happen"


@pytest.mark.parametrize("classes", [3, 5])
def test_no_batch_of_more_classes_is_dropped_within_the_margin(classes):
    """There the margin is of the range over the classes of the difference of the logits; two classes far apart reach it nearly."""
    settings = load_settings("endometrial", "paper").deduction.model_copy(update={"tau_squared": False})
    margin, generator = margin_to_drop(settings, 0.4), torch.Generator().manual_seed(classes)
    largest = 0.0
    for size in (0.0, 1.0, 10.0, 100.0):
        for two_alone in (False, True):
            shared = size * torch.randn((64, classes), generator=generator, dtype=torch.float64)
            apart = torch.randn((64, classes), generator=generator, dtype=torch.float64)
            if two_alone:  # the third and all others have no probability
                shared[:, 2:] -= 1e4
                shared[:, 1] = shared[:, 0] - margin / 2
                apart[:, 0], apart[:, 1:] = 0, 1
            apart *= margin / (apart.amax(1) - apart.amin(1)).square().mean().sqrt()
            divergence = temperature_kl(shared + apart, shared, effective_temperature(settings, shared)).mean().item()
            largest = max(largest, divergence / (settings.keep_ratio * 0.4))
            assert largest <= 1 + 1e-9
    assert largest > 0.6, "the bound is far from what can happen"


def test_the_margin_at_the_papers_settings():
    classification, segmentation = (load_settings(task, "paper").deduction for task in ("camelyon17", "nuclei"))
    assert margin_to_drop(classification, 0.35) == pytest.approx(5 * math.sqrt(8 * 4 * 0.35)) == pytest.approx(16.7, abs=0.05)
    assert margin_to_drop(segmentation, 0.45, 256) == pytest.approx(500 / 256 * math.sqrt(8 * 4 * 0.45)) == pytest.approx(7.4, abs=0.05)
    assert margin_to_drop(segmentation, 0.45, 64) == pytest.approx(margin_to_drop(segmentation, 0.45, 256)), "the same at every side"


@pytest.mark.parametrize(("n", "quantile", "kept"), [(10, 0.7, 7), (100, 0.55, 55), (7, 0.75, 6), (3, 0.01, 1), (3, 1.0, 3), (1, 0.5, 1)])
def test_the_quantile_keeps_ceil_q_n_lowest(n, quantile, kept):
    values = torch.randperm(n, generator=torch.Generator().manual_seed(1)).double().tolist()
    threshold, decisions = lowest_share(values, quantile)
    assert sum(decisions) == kept and threshold == kept - 1
    assert [value for value, stays in zip(values, decisions, strict=True) if stays] == [value for value in values if value < kept]


def test_ties_with_the_last_kept_are_kept():
    assert lowest_share([2.0, 1.0, 2.0, 3.0], 0.5) == (2.0, [True, True, True, False])
    assert lowest_share([1.0, 1.0, 1.0], 0.1) == (1.0, [True, True, True])


@pytest.mark.parametrize("kind", CASES)
def test_measuring_beforehand_meets_the_same_divergence_and_leaves_no_trace(kind):
    student, shared, images, target, loss, settings = _models(kind)
    set_training_mode(student, tuple(student.stages)[:2])
    before = copy.deepcopy(student.state_dict())
    measured = untouched_divergence(student, shared, images, settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert measured == pytest.approx(_step(student, shared, images, target, loss, settings, threshold=0.0).divergence, rel=1e-6)


@pytest.mark.parametrize("kind", CASES)
def test_the_gradient_ratio_is_that_of_the_tensors_reached_and_changes_no_bit(kind):
    student, shared, images, target, loss, settings = _models(kind)
    set_training_mode(student, tuple(student.stages)[:2])
    twin, plain = copy.deepcopy(student), copy.deepcopy(student)
    ratio = _step(student, shared, images, target, loss, settings, threshold=4e6, with_ratio=True).gradient_ratio
    assert math.isnan(_step(plain, shared, images, target, loss, settings, threshold=4e6).gradient_ratio)
    assert all(torch.equal(one, other) for one, other in zip(student.state_dict().values(), plain.state_dict().values(), strict=True))
    logits, maps = twin.forward_stages(images)
    shared_divergence(shared, maps, images, settings).mean().backward(retain_graph=True)
    of_divergence = {name: parameter.grad.clone() for name, parameter in twin.named_parameters() if parameter.grad is not None}
    twin.zero_grad(set_to_none=True)
    loss(logits, target).backward()
    of_task = {name: parameter.grad for name, parameter in twin.named_parameters() if name in of_divergence}
    upper, lower = (math.sqrt(sum(g.double().square().sum().item() for g in part.values())) for part in (of_divergence, of_task))
    assert ratio == pytest.approx(upper / lower, rel=1e-5) and ratio > 0


@pytest.mark.parametrize(("kind", "reached", "free"), [("unet", 12, 52), ("resnet18", 45, 47)])
def test_what_the_kl_reaches(kind, reached, free):
    """With two stages frozen: of the UNet its other two encoders, of the ResNet18 all but the classifier."""
    student, shared, images, _, _, settings = _models(kind)
    set_training_mode(student, tuple(student.stages)[:2])
    shared_divergence(shared, student.encode(images), images, settings).mean().backward()
    assert sum(parameter.requires_grad for parameter in student.parameters()) == free
    assert sum(parameter.grad is not None for parameter in student.parameters()) == reached


def test_a_kl_that_reaches_nothing_has_no_ratio():
    student, shared, images, target, loss, settings = _models("unet")
    set_training_mode(student, tuple(student.stages))
    assert math.isnan(_step(student, shared, images, target, loss, settings, threshold=4e6, decision=False, with_ratio=True).gradient_ratio)
