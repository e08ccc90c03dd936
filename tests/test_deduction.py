"""DDBL: the divergence is the written one, what is kept moves free parameters only, what is dropped leaves no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vfmgl_lib.config import load_settings
from vfmgl_lib.deduction import deduction_step, effective_temperature, shared_divergence
from vfmgl_lib.kernels.overlap import soft_dice_loss
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


def _step(student, shared, images, target, loss, settings, local_task_loss, deduct=True):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    return deduction_step(
        student,
        shared,
        images,
        target,
        optimizer=optimizer,
        task_loss=loss,
        local_task_loss=local_task_loss,
        settings=settings,
        deduct=deduct,
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
    record = _step(student, shared, images, target, loss, settings, local_task_loss=1e6)
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
    record = _step(student, shared, images, target, loss, settings, local_task_loss=0.0)
    assert not record.kept and record.divergence > record.threshold == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert _step(student, shared, images, target, loss, settings, local_task_loss=0.0, deduct=False).kept  # HGKT+KD keeps every batch


def test_loss_is_the_weighted_sum():
    """The update equals a hand-made one on alpha * task + (1 - alpha) * KL."""
    student, shared, images, target, loss, settings = _models("resnet18")
    settings = settings.model_copy(update={"task_share": 0.3})
    twin = copy.deepcopy(student)
    set_training_mode(student)
    _step(student, shared, images, target, loss, settings, local_task_loss=1e6)
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
