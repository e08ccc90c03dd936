"""The training of the pocket teacher: every step draws its own scenes, takes phantoms from a bank, and depends on the seed and the step.

An interrupted run goes on after its last checkpoint and ends, on a CPU, with the bits of an undisturbed one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from tqdm import tqdm

from vfmgl_lib.base.checkpoint import CheckpointError, load_tensors, save_tensors
from vfmgl_lib.base.files import new_folder, write_bytes, write_json, write_text
from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.models.teachers import DRAWN, TRAINED_ON
from vfmgl_lib.tools.pretrain.formulas import Painter
from vfmgl_lib.tools.pretrain.parsing import MEAN, SIDES, STD, Batch, Parsing
from vfmgl_lib.tools.pretrain.phantom_bank import PretrainError, phantom_bank

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS: dict[str, Any] = {"embed_dim": 160, "depth": 8, "num_heads": 5, "img_size": 128}
WEIGHTS, LOG, SETTINGS, CHECKPOINT, BANK = "pocket_vit.safetensors", "log.csv", "settings.json", "checkpoint", "phantoms.safetensors"
CLIP = 1.0
LOOK = {"cpu": 1, "cuda": 100}  # steps between two looks at the loss, and at the clock: a GPU should not wait for it at every step


@dataclass(frozen=True)
class Schedule:
    """What a run's numbers depend on, beside the device."""

    steps: int = 1200
    scenes: int = 192  # a step
    phantoms: int = 64  # a step
    bank: int = 1500  # phantoms of every layout
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "scenes", "phantoms", "bank", "warmup"):
            if getattr(self, name) < 1:
                raise PretrainError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.lr > 0 or self.weight_decay < 0 or self.seed < 0:
            raise PretrainError(f"lr must be above 0, weight_decay and seed at least 0, got {self.lr}, {self.weight_decay}, {self.seed}")


def pretrain(folder: Path, schedule: Schedule, device: torch.device, processes: int = 2, save_every: float = 120.0) -> Path:
    """Trains, or goes on training, and writes the weights.

    Args:
        folder: of this run: settings, phantoms, checkpoint, log and, at the end, the weights.
        device: bfloat16 autocast on a GPU, float32 on a CPU.
        processes: that draw the phantoms.
        save_every: seconds between two checkpoints; on a GPU taken at the next hundredth step.
    Returns: the safetensors file, float16, which `load_teacher` takes.
    Raises: PretrainError: the folder holds a run of other settings. CheckpointError: its checkpoint is damaged.
        FloatingPointError: the loss is not finite.
    """
    settings, weights = {**asdict(schedule), "device": device.type}, folder / WEIGHTS
    file = folder / SETTINGS
    if file.is_file() and (found := json.loads(file.read_text(encoding="utf-8"))) != settings:
        differing = ", ".join(
            f"{name} {found.get(name)!r} instead of {value!r}" for name, value in settings.items() if found.get(name) != value
        )
        raise PretrainError(f"{folder} holds a run with other settings: {differing}; choose another folder or remove it")
    if weights.is_file():
        return weights
    write_json(file, settings)
    bank = {name: torch.from_numpy(array) for name, array in phantom_bank(folder / BANK, schedule.bank, SIDES[-1], processes).items()}
    bank = {name: tensor.to(device) for name, tensor in bank.items()}

    with torch_seed(seed_sequence(schedule.seed, "pretraining", "weights")):
        model = Parsing(new_trunk()).to(device)
    decayed, plain = ([p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98), fused=device.type == "cuda")
    done, rows = _resume(folder, model, optimizer)
    painter = Painter(SIDES[-1], device)
    saved, losses = time.monotonic(), list[Tensor]()
    with tqdm(total=schedule.steps, initial=done, desc="pocket teacher", unit="step", mininterval=1.0, disable=None) as bar:
        for step in range(done, schedule.steps):
            progress = step / schedule.steps
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr * min(1.0, (step + 1) / schedule.warmup) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
            # One for the scenes, the phantoms and the side: a purpose each would change the weights that come with the project.
            seed = int(seed_sequence(schedule.seed, "pretraining", step).generate_state(1, np.uint64)[0] >> 1)
            random = torch.Generator(device).manual_seed(seed)
            batch = next_batch(painter, bank, schedule, seed, random)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(batch, SIDES[seed % len(SIDES)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            losses.append(loss.detach())
            bar.update()
            last = step + 1 == schedule.steps
            if last or len(losses) == LOOK[device.type]:
                mean = torch.stack(losses).mean().item()
                if not math.isfinite(mean):
                    raise FloatingPointError(f"the loss is {mean} around step {step + 1}; lower the learning rate (now {schedule.lr:g})")
                rows.append((step + 1, mean))
                losses = []
                if last or time.monotonic() - saved > save_every:
                    _save(folder, model, optimizer, step + 1, rows)
                    saved = time.monotonic()
    write_text(folder / LOG, _table(rows))
    return export(model.trunk, weights)


def new_trunk() -> VisionTransformer:
    """The pocket teacher's architecture with random weights."""
    return cast(VisionTransformer, timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, dynamic_img_size=True, **MODEL_ARGS))


def next_batch(painter: Painter, bank: dict[str, Tensor], schedule: Schedule, seed: int, random: torch.Generator) -> Batch:
    """Scenes of this seed and random phantoms, turned over, with another contrast and brightness."""
    device, count = random.device, schedule.phantoms
    rows = torch.randint(len(bank["image"]), (count,), generator=random, device=device)
    image, mask = bank["image"][rows].float() / 255, bank["mask"][rows] > 0
    for dimension in (-1, -2):
        over = torch.rand(count, generator=random, device=device) < 0.5
        image = torch.where(over[:, None, None, None], image.flip(dimension), image)
        mask = torch.where(over[:, None, None], mask.flip(dimension), mask)
    gain = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=random, device=device)
    shift = 0.2 * torch.rand(count, 1, 1, 1, generator=random, device=device) - 0.1
    image = ((image - 0.5) * gain + 0.5 + shift).clamp(0, 1)
    return Batch(painter.draw(schedule.scenes, seed), image, mask, bank["layout"][rows].long(), bank["label"][rows].long())


def export(trunk: nn.Module, file: Path) -> Path:
    """Writes the trunk as float16 safetensors that describe themselves, and their sha256 beside them."""
    state = {name: tensor.detach().cpu().half().contiguous() for name, tensor in trunk.state_dict().items()}
    metadata = {
        "architecture": ARCHITECTURE,
        "model_args": json.dumps(MODEL_ARGS),
        "mean": json.dumps([MEAN] * 3),
        "std": json.dumps([STD] * 3),
        TRAINED_ON: DRAWN,
    }
    content = safetensors.torch.save(state, metadata)
    # safetensors writes its header's entries in any order; sorted, the same weights are the same bytes.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    content = len(header).to_bytes(8, "little") + header + content[end:]
    write_text(file.with_suffix(".sha256"), f"{hashlib.sha256(content).hexdigest()}  {file.name}\n")
    write_bytes(file, content)  # last: where it is, the run is finished
    return file


def _save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, rows: list[tuple[int, float]]) -> None:
    moments = {f"{index}.{name}": value for index, entries in optimizer.state_dict()["state"].items() for name, value in entries.items()}
    log = {"step": torch.tensor([row[0] for row in rows]), "loss": torch.tensor([row[1] for row in rows], dtype=torch.float64)}
    # The checkpoint before stays until this one is whole.
    with new_folder(folder / f"{CHECKPOINT}-{step}") as new:
        save_tensors(new, {"model": model.state_dict(), "optimizer": moments, "log": log})
    for old in _checkpoints(folder)[:-1]:
        for part in old.iterdir():
            part.unlink()
        old.rmdir()
    write_text(folder / LOG, _table(rows))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{CHECKPOINT}-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[tuple[int, float]]]:
    found = _checkpoints(folder)
    if not found:
        return 0, []
    newest, state = found[-1], optimizer.state_dict()
    try:
        model.load_state_dict(load_tensors(newest, "model"))
        moments, log = load_tensors(newest, "optimizer"), load_tensors(newest, "log")
    except (CheckpointError, RuntimeError) as error:
        raise CheckpointError(f"{newest}: damaged or of another version; remove it to begin anew ({str(error)[:200]})") from error
    for name, tensor in moments.items():
        index, _, entry = name.partition(".")
        state["state"].setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict(state)
    rows = [(int(step), float(loss)) for step, loss in zip(log["step"], log["loss"], strict=True)]
    return rows[-1][0], rows


def _table(rows: list[tuple[int, float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "mean_loss"))
    writer.writerows((step, f"{loss:.6g}") for step, loss in rows)
    return text.getvalue()
