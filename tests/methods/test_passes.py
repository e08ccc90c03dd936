"""Passes of the student a batch: the stated formula against torch's own count of the multiplications of every method's training."""

import copy
from itertools import repeat

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vfmgl_lib.federation.stage_two import _distil, _divergences
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.methods.passes import ENCODER_SHARE, distillation_passes, hgkt_passes, student_passes
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.students import ResNet18, UNet

TASKS = {"nuclei": "unet", "endometrial": "resnet18"}


class Multiplications(TorchDispatchMode):
    """torch.utils.flop_counter's formulas, without its tracker of modules, which HGKT's `autograd.grad` by non-leaves does not go with."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


def _counted(work):
    with Multiplications() as counter:
        work()
    return counter.total


def _forward(client, images):
    return _counted(lambda: client.student(images))


def test_the_encoder_s_share_of_a_pass():
    images = torch.rand(2, 3, 64, 64)
    for name, student in (("unet", UNet(2, 16)), ("resnet18", ResNet18(2, 16))):
        share = _counted(lambda: student.encode(images)) / _counted(lambda: student(images))  # noqa: B023
        assert share == pytest.approx(ENCODER_SHARE[name], abs=0.01)


@pytest.mark.parametrize("method", ["local", "fedprox", "harmofl", "ditto", "proxyfl"])
def test_an_update_and_two_gradients_a_batch(federation, method):
    client = federation("nuclei", method, student__width=8)[0][0]
    client.begin_round(1, {name: tensor.clone() for name, tensor in client.student.state_dict().items()})
    client.student.train()
    images, target, batch = next(iter(client._load(1, "I", 0)))
    forward = _forward(client, images)
    step = _counted(lambda: client.task_step(images, target, batch))
    assert step / forward == pytest.approx(student_passes(client.settings, 5), rel=0.02)  # no gradient is taken by the images


@pytest.mark.parametrize("inner_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("task", TASKS)
def test_a_step_of_hgkt_with_its_hessian_vector_products(federation, task, inner_steps):
    client = federation(task, "hgkt", student__width=32, transfer__inner_steps=inner_steps)[0][0]
    client.student.train()
    images, target, batch = next(iter(client._load(1, "I", 0)))
    stacks, forward = client.teacher_features(batch), _forward(client, images)
    step = _counted(lambda: client.hgkt.step(images, target, stacks))
    # The matching loss's own products, and what is not needed by the images, are within a tenth.
    share = ENCODER_SHARE[TASKS[task]]
    assert step / forward == pytest.approx(hgkt_passes(inner_steps, share), rel=0.1)
    kept = _counted(lambda: client.hgkt.step(images, target, stacks, meta_step=False))
    assert kept / forward == pytest.approx(3, rel=0.12)
    assert hgkt_passes(inner_steps, share, every=4) == pytest.approx(3 + (hgkt_passes(inner_steps, share) - 3) / 4)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_stage_two(federation, task):
    client = federation(task, "hgkt_kd", student__width=32, transfer__critical_stages=0, deduction__gradient_every=0)[0][0]
    forward = _forward(client, next(iter(client._load(2, "II", 0)))[0])
    shared = {name: tensor.clone() for name, tensor in client.student.state_dict().items()}
    teacher, batches, share = client.teaching_copy(shared), len(client.batches(2, "II")), ENCODER_SHARE[TASKS[task]]
    client.student.train()
    stage = _counted(lambda: _distil(client, teacher, 2, 1.0, repeat(True), lambda batches: None))
    assert stage / batches / forward == pytest.approx(distillation_passes(share), rel=0.06)  # as above
    before = _counted(lambda: list(_divergences(client, teacher, 2))) / batches / forward
    assert before == pytest.approx(distillation_passes(share, quantile=True) - distillation_passes(share), rel=0.06)


def test_a_head_trained_alone_costs_a_forward_pass(federation):
    client = federation("nuclei", "fedrep", student__width=8, comparators__fedrep__head_epochs=2)[0][0]
    forward = _forward(client, next(iter(client._load(1, "I", 0)))[0])
    total = _counted(lambda: client._stage_one(1, lambda batches: None))
    assert total / len(client.batches(1, "I")) / forward == pytest.approx(student_passes(client.settings, 5), rel=0.03)
    joint = client.settings.model_copy(update={"method": "fedper"})
    assert student_passes(joint, 5) == 5 and student_passes(load_settings("nuclei", method="fedavg"), 5) == 3


def test_every_method_is_counted_and_reported_at_equal_compute():
    for task in TASKS:
        spent = {}
        for method in METHODS:
            settings = load_settings(task, "paper", method=method, federation__rounds=10, federation__match_compute=True)
            spent[method] = student_passes(settings, 10) * report_rounds(settings)["compute"]
            assert report_rounds(copy.deepcopy(settings)).keys() >= {"rounds", "compute"}
        assert spent.pop("frozen_probe") == 0
        assert report_rounds(load_settings(task, "paper", federation__rounds=10, federation__match_compute=True))["compute"] == 10
        for method, passes in spent.items():
            assert passes == pytest.approx(spent["vfmgl"], rel=0.06), method
        assert "compute" not in report_rounds(load_settings(task, "paper"))
