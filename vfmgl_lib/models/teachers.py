"""Frozen teachers: any timm ViT (grid features after four blocks) or timm CNN (`features_only` levels).

`models.teacher_names` says how a teacher is named.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HfHubHTTPError
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg, is_model_in_modules, load_model_config_from_hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vfmgl_lib.base.files import sha256
from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.base.surroundings import about_proxy
from vfmgl_lib.models.teacher_names import ELSE, HUB, POCKET, POCKET_FILE, TeacherError, TeacherSource
from vfmgl_lib.models.weights import described, is_safetensors, read_metadata, read_weights

log = logging.getLogger(__name__)
CNN_STRIDES = (4, 8, 16, 32)
CNN_GRID_STRIDE = 16  # a CNN's grid is the side of its stride-16 level, so that `grid` means about the same for both families
POCKET_ARGUMENTS = {"embed_dim": 160, "depth": 8, "num_heads": 5, "img_size": 128}  # left out of identities, as before others were in them
TRAINED_ON, DRAWN = "trained_on", "drawn images alone"  # of a file's metadata
HUB_HOST = urlsplit(huggingface_hub.constants.ENDPOINT).hostname or ""
PATIENCE = 3.0  # seconds until the hub counts as out of reach


def doubts_about(teacher: str) -> list[str]:
    """What must be said first of anything made with this teacher, given by its text or its description; [] of other teachers.

    Raises: TeacherError: the text names a damaged file; one that is not there is said when it is loaded.
    """
    source = TeacherSource.parse(teacher)
    random = source.random or "RANDOM" in teacher
    drawn = not random and (DRAWN in teacher or (Path(source.weights).is_file() and _described(source).get(TRAINED_ON) == DRAWN))
    return ["a teacher with RANDOM weights"] * random + ["a teacher that has seen DRAWN images alone"] * drawn


class Teacher(nn.Module):
    """A frozen feature extractor; `forward(images) -> stacks`.

    Attributes:
        description: one line for every output: architecture, where the weights come from, image size.
        identity: hash of architecture, weights and preprocessing, for result folders and caches.
        image_size: side in pixels of the square input.
        block_names: names of all teacher blocks, in the order of the stacks.
        stack_shapes: (M, C_t, g) per stack.
        autocast: on a GPU it computes in bfloat16 (set by its user).
    """

    autocast = False
    backbone: Any  # a timm ViT, or a CNN's `features_only` form
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        blocks: tuple[int, ...],
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.is_vit = isinstance(backbone, VisionTransformer)
        self.blocks, self.image_size = blocks, image_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.description = self.identity = ""
        stacks = self(torch.zeros(1, 3, image_size, image_size))
        self.stack_shapes = [(s.shape[1], s.shape[2], s.shape[3]) for s in stacks]
        self.block_names = [f"block {b}" for b in blocks] if self.is_vit else [f"stride {s}" for s in CNN_STRIDES]

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: a frozen teacher has no training mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Frozen maps of a batch, each image by itself: computed together, their last bits would depend on the size of the batch.

        Args:
            images: (B, 3, H, W) float32 in [0, 1]; resized to the teacher's side if needed, then normalised as the teacher expects.
        Returns: stacks (B, M, C_t, g, g): one of all blocks for a ViT (through its final norm), one per level (M = 1) for a CNN.
        """
        with torch.autocast("cuda", torch.bfloat16, enabled=self.autocast and images.is_cuda):
            return [torch.cat(parts).float() for parts in zip(*map(self._maps, images.split(1)), strict=True)]

    def compiled(self) -> Teacher:
        """The same teacher with its forward pass compiled; its features may differ in their last bits."""
        self._maps = torch.compile(self._maps)  # type: ignore[method-assign]  # of this teacher alone
        return self

    def _maps(self, images: Tensor) -> list[Tensor]:
        side = (self.image_size, self.image_size)
        if tuple(images.shape[-2:]) != side:
            images = F.interpolate(images, size=side, mode="bilinear", align_corners=False, antialias=True)
        images = (images - self.mean) / self.std
        if not self.is_vit:
            return [level[:, None] for level in self.backbone(images)]
        indices = [block - 1 for block in self.blocks]
        maps = self.backbone.forward_intermediates(images, indices=indices, norm=True, output_fmt="NCHW", intermediates_only=True)
        return [torch.stack(maps, dim=1)]


def load_teacher(
    text: str,
    *,
    grid: int = 16,
    image_size: int | None = None,
    blocks: tuple[int, ...] | None = None,
    model_args: dict | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Teacher:
    """Loads and freezes a teacher.

    Args:
        text: which teacher and weights (module docstring).
        grid: g, tokens along a side; the image side becomes g * patch (ViT) or 16 g (CNN).
        image_size: sets the side explicitly instead; the patch (CNN: 32) must divide it.
        blocks: 1-based ViT blocks; default 1, D/3, 2D/3, D (DINOv2 ViT-B: 1, 4, 8, 12). A CNN has its strides 4, 8, 16, 32.
        model_args: additional arguments of `timm.create_model`, where a file's metadata does not name them.
        mean, std: of the channels red, green, blue in [0, 1], which images are normalised by; None: what the file's metadata say, else what
            timm has for this network.
    Raises: TeacherError: for an unknown name, weights that cannot be read or do not fit, a size that the patch does not divide.
    """
    source, asked_for = TeacherSource.parse(text), bool(mean or std)
    if text == POCKET:
        _check_pocket()
    name, described_arguments, metadata = architecture(text)
    arguments = described_arguments | (model_args or {})
    from_file = source.weights != "hub" and not source.random
    if from_file:  # before memory is taken for what the arguments ask for
        with torch.device("meta"):
            empty = _create(name, arguments, "")
        weights = read_weights(Path(source.weights), empty, name)
    full = _create(name, arguments, source.name if source.weights == "hub" and not source.random else "")
    if from_file:
        full.load_state_dict(weights.state, strict=False)  # `read_weights` is strict
    usual = resolve_model_data_config(full)
    mean = tuple(mean) if mean else _three_numbers(source, metadata, "mean") if "mean" in metadata else tuple(usual["mean"])
    std = tuple(std) if std else _three_numbers(source, metadata, "std") if "std" in metadata else tuple(usual["std"])

    patch, step = (full.patch_embed.patch_size[0],) * 2 if isinstance(full, VisionTransformer) else (CNN_GRID_STRIDE, 32)
    side = image_size if image_size is not None else grid * patch
    if side <= 0 or side % step:
        asked = f"teacher.image_size {side}" if image_size is not None else f"teacher.grid {grid} (side {side})"
        raise TeacherError(f"{asked}: {name} needs a multiple of {step}, e.g. {max(1, round(side / step)) * step}")
    if isinstance(full, VisionTransformer):
        depth = len(full.blocks)
        blocks = blocks or tuple(dict.fromkeys((1, max(1, depth // 3), max(1, 2 * depth // 3), depth)))
        if min(blocks) < 1 or max(blocks) > depth:
            raise TeacherError(f"teacher.blocks {list(blocks)}: {name} has blocks 1 to {depth}")
        backbone: nn.Module = full
    else:
        backbone, blocks = _feature_levels(full, name, arguments), ()
    try:
        teacher = Teacher(backbone, blocks, side, mean, std)
    except RuntimeError as error:
        raise TeacherError(f"teacher {text}: {name} with {arguments} takes no image of 3 channels ({str(error)[:120]})") from error
    parts = [POCKET] if text == POCKET else [source.name or name, _where(source, weights.prefix if from_file else "")]
    if TRAINED_ON in metadata and not source.random:
        parts.append(f"pre-trained on {metadata[TRAINED_ON]}")
    parts.append(f"{side} x {side}")
    if asked_for or (from_file and not {"mean", "std"} <= metadata.keys()):
        parts.append(f"mean {_in_words(mean)} std {_in_words(std)}")
    if from_file and teacher.is_vit and text != POCKET and weights.positions not in (None, side // patch):
        parts.append(f"positions resampled from {weights.positions} x {weights.positions} to {side // patch} x {side // patch}")
    teacher.description = ", ".join(parts)
    teacher.identity = _identity(teacher, name, blocks, arguments)
    log.info("teacher: %s", teacher.description)
    return teacher


def architecture(text: str) -> tuple[str, dict, dict[str, str]]:
    """timm's name of the network, its arguments, and the metadata of a file that describes itself ({} of others).

    Raises: TeacherError: a file that is not there or does not say what network its weights belong to; a repository out of reach.
    """
    source = TeacherSource.parse(text)
    if source.name.startswith(HUB):
        try:
            _, name, arguments = load_model_config_from_hf(source.name.removeprefix(HUB))
        except Exception as error:  # the client's kinds of error change with its version
            raise _not_from_the_hub(source.name, error) from error
        return name, arguments or {}, {}
    metadata = _described(source)
    name = source.name or metadata.get("architecture", "")
    if not name and not os.path.isfile(source.weights):
        raise TeacherError(f"teacher weights {source.weights}: no such file")
    if not name:
        raise TeacherError(
            f"teacher {text}: the file does not name its architecture in its metadata; write NAME={source.weights}, NAME a timm model"
        )
    arguments = described(Path(source.weights), metadata, "model_args", dict) if "model_args" in metadata else {}
    return name, arguments, metadata


def first_available(text: str) -> str:
    """Of "A else B" the first that is not one of the hub's, or whose weights are cached, or can be had from the hub.

    The last is taken without looking; a text with one teacher is that teacher.

    Raises: TeacherError: one that is looked at is neither a file, a model of timm's nor hf-hub:OWNER/REPOSITORY.
    """
    *wanted, last = text.split(ELSE)
    for one in wanted:
        source = TeacherSource.parse(one)
        if source.weights != "hub" or source.random:
            return one
        repository = _repository(source.name)
        if _is_cached(repository) or not (refusal := _hub_refusal(repository)):
            return one
        log.warning("teacher %s: its weights are not cached and %s; the next choice of %r is looked at", one, refusal, text)
    return last


def _repository(name: str) -> str:
    """Of a model on the hub; "" for one of timm's without weights there."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    _check_name(name)
    known = get_pretrained_cfg(name)
    return (known.hf_hub_id if known else None) or ""


def _check_name(name: str) -> None:
    model = name.split(".")[0]
    if not timm.is_model(model):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise TeacherError(f"teacher {name!r} is not a timm model; similar names: {', '.join(close) or 'none'}")
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(f"{model}.*")) or "none"
        raise TeacherError(f"teacher {name!r}: timm has no such weights of {model}; there are {known}") from error


def _is_cached(repository: str) -> bool:
    files = ("model.safetensors", "pytorch_model.bin")
    return bool(repository) and any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in files)


def _hub_refusal(repository: str) -> str:
    """Why the hub would not give the weights, "" if it would. As its own client sees it: through a proxy, at a mirror, or offline."""
    if not repository:
        return "timm knows none on the hub"
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, "config.json"), timeout=PATIENCE)
    except HfHubHTTPError as error:
        return f"the hub has or gives no {repository} ({type(error).__name__})"
    except Exception as error:  # the client's other kinds of error change with its version, and none of them is the user's
        log.debug("the hub does not answer: %r", error)
        return f"the hub is out of reach{about_proxy(HUB_HOST)}"
    return ""


def _check_pocket() -> None:
    file = POCKET_FILE.with_suffix(".sha256")
    expected = file.read_text(encoding="utf-8").split()[0] if file.is_file() else "in the file beside it"
    if not POCKET_FILE.is_file() or sha256(POCKET_FILE) != expected:
        raise TeacherError(f"teacher {POCKET}: {POCKET_FILE} is missing or damaged (its sha256 must be {expected}); restore it with git")


def _create(name: str, arguments: dict, from_hub: str) -> nn.Module:
    """The network; `from_hub`: the hub's name of its weights, "" for random ones."""
    _check_name(name)
    if is_model_in_modules(name.split(".")[0], ["vision_transformer"]):
        arguments = {"num_classes": 0, "dynamic_img_size": True} | arguments
    with torch_seed(seed_sequence(0, "teacher", name)):
        try:
            return timm.create_model(from_hub or name, pretrained=bool(from_hub), **arguments)
        except TypeError as error:
            raise TeacherError(f"teacher {name}: its model arguments {arguments} do not fit: {error}") from error
        except Exception as error:  # what a network's own code raises on arguments that cannot be, and the hub's client
            if from_hub:
                raise _not_from_the_hub(from_hub, error) from error
            raise TeacherError(f"teacher {name}: cannot be built with {arguments}: {error}") from error


def _not_from_the_hub(name: str, error: Exception) -> TeacherError:
    return TeacherError(
        f"teacher {name}: its weights could not be had from the hub ({type(error).__name__}){about_proxy(HUB_HOST)}. "
        f"Either connect once (they are cached), or fetch the file elsewhere and give {'NAME' if name.startswith(HUB) else name}=FILE; "
        f"{POCKET} comes with this project, and is no foundation model"
    )


def _described(source: TeacherSource) -> dict[str, str]:
    """The metadata of a file that describes itself, {} of others."""
    path = Path(source.weights)
    return read_metadata(path) if source.weights != "hub" and is_safetensors(path) else {}


def _three_numbers(source: TeacherSource, metadata: dict[str, str], key: str) -> tuple[float, ...]:
    """A mean or standard deviation that a file's metadata name."""
    values = described(Path(source.weights), metadata, key, list)
    good = len(values) == 3 and all(type(value) in (int, float) and 0 <= value <= 1 for value in values)
    if not good or (key == "std" and min(values) == 0):
        expected = "three numbers in [0, 1], std above 0"
        raise TeacherError(f"teacher weights {source.weights}: {key} in its metadata is {values}, expected {expected}")
    return tuple(values)


def _in_words(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _where(source: TeacherSource, prefix: str) -> str:
    if source.random:
        return "RANDOM weights (asked for by name; nothing to transfer)"
    return "weights from the hub" if source.weights == "hub" else f"weights from {Path(source.weights).name}{f' ({prefix})' * bool(prefix)}"


def _feature_levels(full: nn.Module, name: str, arguments: dict) -> nn.Module:
    """The CNN's `features_only` form with the weights of `full`, at strides 4, 8, 16 and 32."""
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    try:
        network: Any = timm.create_model(name, features_only=True, **arguments)
        reductions = network.feature_info.reduction()
        indices = [reductions.index(stride) for stride in CNN_STRIDES]
    except (RuntimeError, AttributeError, ValueError) as error:
        raise TeacherError(f"teacher {name}: neither a ViT nor a CNN with levels at strides {CNN_STRIDES}") from error
    levels = timm.create_model(name, features_only=True, out_indices=indices, **arguments)
    own, state = levels.state_dict(), full.state_dict()
    missing = sorted(set(own) - set(state))
    if missing:
        raise TeacherError(f"teacher {name}: its feature levels have tensors that its weights lack, e.g. {missing[:3]}")
    levels.load_state_dict({key: state[key] for key in own})
    return levels


def _identity(teacher: Teacher, name: str, blocks: tuple[int, ...], arguments: dict) -> str:
    """Of all that decides on the features: the same weights give others with another number of heads."""
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}  # no feature depends on the classifier
    parts = [name, list(blocks), teacher.image_size, *([arguments] if arguments not in ({}, POCKET_ARGUMENTS) else [])]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for key, tensor in sorted({**teacher.backbone.state_dict(), "mean": teacher.mean, "std": teacher.std}.items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
