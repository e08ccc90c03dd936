"""On a CUDA device: the step gives what it gives on a CPU, waits for nothing, and a whole study and a pre-training run end."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vfmgl_lib.kernels.overlap import soft_dice_loss
from vfmgl_lib.method.hgkt import HGKT
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.students import ResNet18, UNet
from vfmgl_lib.models.teachers import load_teacher
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools.pretrain.training import Schedule, pretrain

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SHAPES = [(4, 24, 8)]
STUDENTS = {"resnet18": ("endometrial", lambda: ResNet18(2, 8), F.cross_entropy), "unet": ("nuclei", lambda: UNet(2, 8), soft_dice_loss)}


def _step(kind: str, device: str, dtype: torch.dtype) -> tuple[HGKT, tuple]:
    task, make, loss = STUDENTS[kind]
    torch.manual_seed(0)
    hgkt = HGKT(make().to(dtype), SHAPES, load_settings(task, "paper").transfer, 0.01, loss)
    hgkt.model.to(device), hgkt.meta.to(device)
    hgkt.momenta = {name: momentum.to(device) for name, momentum in hgkt.momenta.items()}
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, 64, 64, generator=generator, dtype=dtype)
    target = torch.randint(0, 2, (3, 64, 64) if kind == "unet" else (3,), generator=generator)
    stacks = [torch.randn(3, m, c, g, g, generator=generator, dtype=dtype) for m, c, g in SHAPES]
    return hgkt, (images.to(device), target.to(device), [stack.to(device) for stack in stacks])


@pytest.mark.parametrize("kind", list(STUDENTS))
def test_a_step_moves_everything_as_on_a_cpu(kind):
    moved = {}
    for device in ("cpu", "cuda"):
        hgkt, batch = _step(kind, device, torch.float64)
        for _ in range(2):
            record = hgkt.step(*batch)
        moved[device] = {name: t.cpu() for name, t in {**hgkt.model.state_dict(), **hgkt.meta.state_dict()}.items()}
        moved[device]["norm"] = record.hypergradient_norm.cpu()
    for name, expected in moved["cpu"].items():
        torch.testing.assert_close(moved["cuda"][name], expected, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", list(STUDENTS))
def test_a_step_never_waits_for_the_device(kind):
    hgkt, batch = _step(kind, "cuda", torch.float32)
    hgkt.step(*batch)  # what is loaded or compiled once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        hgkt.step(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("task", ["nuclei", "endometrial"])
def test_a_study_ends_and_learns_what_it_learns_on_a_cpu(task, tmp_path):
    samples = {"train": 8, "test": 8} | ({"val": 2} if task == "nuclei" else {})
    small = {"phantoms__samples": samples, "phantoms__centers": 2, "federation__rounds": 2, "optimizer__batch_size": 4}
    measured = {}
    for device in ("cpu", "cuda"):
        study = open_workspace(task, "smoke", device=device, runs=tmp_path / device, **small).run()
        steps = study.steps[study.steps["stage"] == "I"]
        measured[device] = steps.sort_values(["round", "center", "step"])[["task_loss", "match_loss"]].to_numpy(float)
    assert np.isfinite(measured["cuda"]).all()
    # bfloat16 features of the teacher and another order of sums: about the same, not the same.
    np.testing.assert_allclose(measured["cuda"], measured["cpu"], rtol=0.15)


def test_pretraining_ends_and_its_weights_load(tmp_path):
    schedule = Schedule(steps=4, scenes=8, phantoms=4, bank=4, warmup=2)
    file = pretrain(tmp_path / "run", schedule, torch.device("cuda"), processes=1)
    stacks = load_teacher(str(file), grid=4)(torch.rand(2, 3, 64, 64))
    assert [tuple(stack.shape) for stack in stacks] == [(2, 4, 160, 4, 4)] and all(bool(s.isfinite().all()) for s in stacks)
