"""Frozen teachers: any timm network that gives maps (`models.networks`: after four blocks, or of its four deepest levels).

`models.teacher_names` says how a teacher is named.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import huggingface_hub
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn

from vfmgl_lib.base.files import sha256
from vfmgl_lib.base.surroundings import about_proxy
from vfmgl_lib.models.hub_files import CONFIG, WEIGHTS, hub_file, read_config, told_by_weights
from vfmgl_lib.models.teacher_names import ELSE, HUB, POCKET, POCKET_FILE, TeacherError, TeacherSource
from vfmgl_lib.models.timm_names import check_name
from vfmgl_lib.models.weights import Weights, described, is_safetensors, read_metadata, read_tensors, read_weights

if TYPE_CHECKING:
    from vfmgl_lib.models.networks import Form

log = logging.getLogger(__name__)
POCKET_ARGUMENTS = {"embed_dim": 160, "depth": 8, "num_heads": 5, "img_size": 128}  # left out of identities, as before others were in them
TRAINED_ON, DRAWN = "trained_on", "drawn images alone"  # of a file's metadata
HUB_HOST = urlsplit(constants.ENDPOINT).hostname or ""
PATIENCE = 3.0  # seconds until the hub counts as out of reach


def doubts_about(teacher: str) -> list[str]:
    """What must be said first of anything made with this teacher, given by its text or its description; [] of other teachers.

    Raises: TeacherError: the text names a damaged file; one that is not there is said when it is loaded.
    """
    source = TeacherSource.parse(teacher)
    random = source.random or "RANDOM" in teacher
    drawn = not random and (DRAWN in teacher or (Path(source.weights).is_file() and _metadata(source).get(TRAINED_ON) == DRAWN))
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
    backbone: Any  # a timm network, or a CNN's `features_only` form
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, form: Form, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.form, self.image_size = form, image_size
        self.blocks = tuple(index + 1 for index in form.indices) if form.blocks else ()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.description = self.identity = ""
        stacks = self(torch.zeros(1, 3, image_size, image_size))
        self.stack_shapes = [(s.shape[1], s.shape[2], s.shape[3]) for s in stacks]
        self.block_names = list(form.names)

    @property
    def dense_stack(self) -> int:
        """The place of the stack whose grid is nearest to that of stride 16: it serves as tokens where one stack must do."""
        from vfmgl_lib.models.networks import GRID_STRIDE

        grids = [grid for _, _, grid in self.stack_shapes]
        return min(range(len(grids)), key=lambda place: abs(grids[place] - self.image_size / GRID_STRIDE))

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: a frozen teacher has no training mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Frozen maps of a batch, each image by itself: computed together, their last bits would depend on the size of the batch.

        Args:
            images: (B, 3, H, W) float32 in [0, 1]; resized to the teacher's side if needed, then normalised as the teacher expects.
        Returns: stacks (B, M, C_t, g, g): one of all blocks, or one per level (M = 1), see `models.networks`.
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
        return self.form.maps(self.backbone, images)


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
        text: which teacher and weights (`models.teacher_names`).
        grid: g, tokens along a side; the image side becomes g * patch (a network of blocks) or 16 g (one of levels), or the nearest that
            the network takes: Swin's windows fit in whole multiples of its own side, MaxViT and some others take their own side alone.
        image_size: sets the side explicitly instead; the patch (levels: the deepest stride) must divide it.
        blocks: 1-based, of a network of blocks; default 1, D/3, 2D/3, D (DINOv2 ViT-B: 1, 4, 8, 12). Refused where there are levels.
        model_args: additional arguments of `timm.create_model`, where a file's metadata does not name them.
        mean, std: of the channels red, green, blue in [0, 1], which images are normalised by; None: what the file's metadata or the hub's
            config say, else what timm has for this network.
    Raises: TeacherError: for an unknown name, a network without maps, weights that cannot be read or do not fit, a size it does not take.
    """
    from timm.data import resolve_model_data_config

    from vfmgl_lib.models.networks import create, extractor, network_form

    source, asked_for = TeacherSource.parse(text), bool(mean or std)
    if text == POCKET:
        _check_pocket()
    found = _described(source)
    name, metadata, arguments = found.name, found.metadata, found.arguments | (model_args or {})
    form, weights = network_form(name, arguments, blocks), None
    side = form.side(name, grid, image_size)
    if found.file:  # before memory is taken for what the arguments ask for
        with torch.device("meta"):
            empty = create(name, form.usual | arguments)
        weights = read_weights(found.file, empty, name, found.tensors)
    full = _full_network(source, name, form.usual | arguments, weights)
    usual = resolve_model_data_config(full)
    mean = tuple(mean) if mean else _three_numbers(found, "mean") if "mean" in metadata else tuple(usual["mean"])
    std = tuple(std) if std else _three_numbers(found, "std") if "std" in metadata else tuple(usual["std"])
    try:
        teacher = Teacher(extractor(full, form, name, arguments, side), form, side, mean, std)
    except (RuntimeError, AssertionError, ValueError) as error:
        said = f"takes no image of 3 channels, {side} x {side}" if isinstance(error, RuntimeError) else f"takes no image of {side} x {side}"
        raise TeacherError(f"teacher {text}: {name} with {arguments} {said} ({str(error)[:120]})") from error
    teacher.description = _description(text, source, found, teacher, weights, grid, asked_for)
    teacher.identity = _identity(teacher, name, arguments)
    log.info("teacher: %s", teacher.description)
    return teacher


@dataclass(frozen=True)
class _Described:
    """What is known of a teacher before it is built.

    Attributes:
        name, arguments: of timm's model.
        metadata: what describes it besides, {} of others: mean and std as JSON, trained_on.
        told: those of the arguments that only the weights tell.
        file: with its weights; None: random ones, or timm's own from the hub.
        tensors: of the file, where they have been read.
    """

    name: str
    arguments: dict
    metadata: dict[str, str]
    told: dict = field(default_factory=dict)
    file: Path | None = None
    tensors: dict[str, Tensor] | None = None


def architecture(text: str) -> tuple[str, dict, dict[str, str]]:
    """timm's name of the network, its arguments, and the metadata of a file or a repository that describes itself ({} of others).

    Raises: TeacherError: a file that is not there or does not say what network its weights belong to; a repository out of reach.
    """
    found = _described(TeacherSource.parse(text))
    return found.name, found.arguments, found.metadata


def _described(source: TeacherSource) -> _Described:
    if source.name.startswith(HUB):
        return _described_by_hub(source)
    if source.weights == "hub":
        return _Described(source.name, {}, {})
    path = Path(source.weights)
    metadata, file = _metadata(source), None if source.random else path
    name = source.name or metadata.get("architecture", "")
    if not name and not path.is_file():
        raise TeacherError(f"teacher weights {path}: no such file")
    beside = path.with_name(CONFIG)
    if not name and beside.is_file():
        return _by_config(beside, path, file)
    if not name:
        raise TeacherError(
            f"teacher {path}: the file does not name its architecture in its metadata; write NAME={path}, NAME a timm model, or put the "
            f"{CONFIG} of its repository beside it"
        )
    arguments = described(path, metadata, "model_args", dict) if "model_args" in metadata else {}
    return _Described(name, arguments, metadata, file=file)


def _described_by_hub(source: TeacherSource) -> _Described:
    """By a repository's config and weights. Of random ones the config is enough; cached weights are still asked for what they tell."""
    repository = source.name.removeprefix(HUB)
    try:
        config = hub_file(repository, CONFIG)
        try:
            weights: Path | None = hub_file(repository, *WEIGHTS, cached_only=source.random)
        except LocalEntryNotFoundError:
            if not source.random:
                raise
            weights = None
    except Exception as error:  # the client's kinds of error change with its version
        raise _not_from_the_hub(source.name, error) from error
    return _by_config(config, weights, None if source.random else weights)


def _by_config(config: Path, weights: Path | None, file: Path | None) -> _Described:
    name, arguments, metadata = read_config(config)
    if weights is None:
        return _Described(name, arguments, metadata)
    from vfmgl_lib.models.networks import create

    tensors = read_tensors(weights)
    with torch.device("meta"):
        told = told_by_weights(create(name, arguments), tensors)
    return _Described(name, told | arguments, metadata, told, file, tensors if file else None)


def _full_network(source: TeacherSource, name: str, arguments: dict, weights: Weights | None) -> nn.Module:
    from vfmgl_lib.models.networks import create

    try:
        full = create(name, arguments, source.name if source.weights == "hub" and not source.random and weights is None else "")
    except TeacherError:
        raise
    except Exception as error:  # the client's kinds of error change with its version
        raise _not_from_the_hub(source.name, error) from error
    if weights:
        full.load_state_dict(weights.state, strict=False)  # `read_weights` is strict
    return full


def _description(
    text: str, source: TeacherSource, found: _Described, teacher: Teacher, weights: Weights | None, grid: int, asked_for: bool
) -> str:
    side, metadata, form = teacher.image_size, found.metadata, teacher.form
    parts = [POCKET] if text == POCKET else [source.name or found.name, _where(source, weights.prefix if weights else "")]
    if TRAINED_ON in metadata and not source.random:
        parts.append(f"pre-trained on {metadata[TRAINED_ON]}")
    if found.told:
        parts.append("with " + " ".join(f"{key} {value}" for key, value in found.told.items()) + " as its weights tell")
    parts.append(f"{side} x {side}")
    if form.sides != "any":
        takes = "it takes no other" if form.sides == "own" else f"it takes whole multiples of {form.own}"
        parts[-1] += f" ({takes})"
    if asked_for or (weights and not {"mean", "std"} <= metadata.keys()):
        parts.append(f"mean {_in_words(teacher.mean.flatten().tolist())} std {_in_words(teacher.std.flatten().tolist())}")
    own_file = weights if source.weights != "hub" and text != POCKET else None
    if own_file and form.blocks and own_file.positions not in (None, side // form.step):
        parts.append(f"positions resampled from {own_file.positions} x {own_file.positions} to {side // form.step} x {side // form.step}")
    return ", ".join(parts)


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
        if is_cached(repository) or not (refusal := _hub_refusal(repository)):
            return one
        log.warning("teacher %s: its weights are not cached and %s; the next choice of %r is looked at", one, refusal, text)
    return last


def _repository(name: str) -> str:
    """Of a model on the hub; "" for one of timm's without weights there."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    from timm.models import get_pretrained_cfg

    check_name(name)
    known = get_pretrained_cfg(name)
    return (known.hf_hub_id if known else None) or ""


def is_cached(repository: str) -> bool:
    """Whether weights of a repository of the hub are on this machine."""
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


def _not_from_the_hub(name: str, error: Exception) -> TeacherError:
    return TeacherError(
        f"teacher {name}: its weights could not be had from the hub ({type(error).__name__}){about_proxy(HUB_HOST)}. "
        f"Either connect once (they are cached), or fetch the file elsewhere and give {'NAME' if name.startswith(HUB) else name}=FILE; "
        f"{POCKET} comes with this project, and is no foundation model"
    )


def _metadata(source: TeacherSource) -> dict[str, str]:
    """The metadata of a file that describes itself, {} of others."""
    path = Path(source.weights)
    return read_metadata(path) if source.weights != "hub" and is_safetensors(path) else {}


def _three_numbers(found: _Described, key: str) -> tuple[float, ...]:
    """A mean or standard deviation that the metadata name."""
    path = found.file or Path(found.name)
    values = described(path, found.metadata, key, list)
    good = len(values) == 3 and all(type(value) in (int, float) and 0 <= value <= 1 for value in values)
    if not good or (key == "std" and min(values) == 0):
        expected = "three numbers in [0, 1], std above 0"
        raise TeacherError(f"teacher weights {path}: {key} in its metadata is {values}, expected {expected}")
    return tuple(values)


def _in_words(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _where(source: TeacherSource, prefix: str) -> str:
    if source.random:
        return "RANDOM weights (asked for by name; nothing to transfer)"
    return "weights from the hub" if source.weights == "hub" else f"weights from {Path(source.weights).name}{f' ({prefix})' * bool(prefix)}"


def _identity(teacher: Teacher, name: str, arguments: dict) -> str:
    """Of all that decides on the features: the same weights give others with another number of heads."""
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}  # no feature depends on the classifier
    parts = [name, list(teacher.blocks), teacher.image_size, *([arguments] if arguments not in ({}, POCKET_ARGUMENTS) else [])]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    classifier = (getattr(teacher.backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = tuple(f"{place}." for place in ([classifier] if isinstance(classifier, str) else classifier))
    state = {key: tensor for key, tensor in teacher.backbone.state_dict().items() if not key.startswith(heads)}
    for key, tensor in sorted({**state, "mean": teacher.mean, "std": teacher.std}.items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
