"""Frozen teachers: any timm ViT (grid features after four blocks) or timm CNN (`features_only` levels).

A teacher is named by one text:

    pocket_vit      the small ViT that comes with this project (pocket_vit.md), for where nothing can be downloaded
    NAME            timm model with its pretrained weights from the hub, e.g. vit_base_patch14_dinov2.lvd142m, or hf-hub:OWNER/REPOSITORY
    FILE            weights that describe themselves: safetensors whose metadata names architecture, model_args, mean and std
    NAME=FILE       weights in timm's layout or in DINOv2's original one (.safetensors, .pth, .pt, .bin)
    random:TEXT     the network of any of these with random weights: the control of a teacher, teaches nothing; every output says so

Settings may name a second choice, "A else B": `first_available` says which of them it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg, is_model_in_modules, load_model_config_from_hf
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from vfmgl_lib.files import sha256
from vfmgl_lib.randomness import seed_sequence, torch_seed

log = logging.getLogger(__name__)
CNN_STRIDES = (4, 8, 16, 32)
CNN_GRID_STRIDE = 16  # a CNN's grid is the side of its stride-16 level, so that `grid` means about the same for both families
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
POCKET, POCKET_FILE = "pocket_vit", Path(__file__).with_name("pocket_vit.safetensors")
ELSE, HUB, RANDOM = " else ", "hf-hub:", "random:"
TRAINED_ON, DRAWN = "trained_on", "drawn images alone"  # of a file's metadata
PATIENCE = 3.0  # seconds until the hub counts as out of reach


def doubts_about(teacher: str) -> list[str]:
    """What must be said first of anything made with this teacher, given by its text or its description; [] of other teachers.

    Raises: TeacherError: the text names a damaged file; one that is not there is said when it is loaded.
    """
    source = TeacherSource.parse(teacher)
    random = source.random or "RANDOM" in teacher
    drawn = not random and (DRAWN in teacher or (Path(source.weights).is_file() and _described(source).get(TRAINED_ON) == DRAWN))
    return ["a teacher with RANDOM weights"] * random + ["a teacher that has seen DRAWN images alone"] * drawn


class TeacherError(ValueError):
    """A teacher that cannot be had as asked for; the message says what would have been right."""


@dataclass(frozen=True)
class TeacherSource:
    """A parsed teacher text: model name ("" when the file names it), weights ("hub" or a path), and whether random ones replace them."""

    name: str
    weights: str
    random: bool = False

    @classmethod
    def parse(cls, text: str) -> TeacherSource:
        """Reads pocket_vit, NAME, FILE, NAME=FILE or random: and one of them (see the module's docstring)."""
        if text == POCKET:
            return cls("", str(POCKET_FILE))
        if text.startswith(RANDOM):
            return replace(cls.parse(text.removeprefix(RANDOM)), random=True)
        name, equals, file = text.partition("=")
        if equals:
            return cls(name, file)
        return cls("", text) if text.endswith(WEIGHT_SUFFIXES) else cls(text, "hub")


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
        self._maps = torch.compile(self._maps)
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
) -> Teacher:
    """Loads and freezes a teacher.

    Args:
        text: which teacher and weights (module docstring).
        grid: g, tokens along a side; the image side becomes g * patch (ViT) or 16 g (CNN).
        image_size: sets the side explicitly instead; the patch (CNN: 32) must divide it.
        blocks: 1-based ViT blocks; default 1, D/3, 2D/3, D (DINOv2 ViT-B: 1, 4, 8, 12). A CNN has its strides 4, 8, 16, 32.
        model_args: additional arguments of `timm.create_model`, where a file's metadata does not name them.
    Raises: TeacherError: for an unknown name, weights that cannot be read or do not fit, a size that the patch does not divide.
    """
    source = TeacherSource.parse(text)
    if text == POCKET:
        _check_pocket()
    name, described_arguments, metadata = architecture(text)
    arguments = described_arguments | (model_args or {})
    full = _create(name, arguments, source.name if source.weights == "hub" and not source.random else "")
    if source.weights != "hub" and not source.random:
        _load_weights(full, Path(source.weights), name)
    data = resolve_model_data_config(full)
    mean, std = (tuple(json.loads(metadata[key])) if key in metadata else tuple(data[key]) for key in ("mean", "std"))

    is_vit = isinstance(full, VisionTransformer)
    patch, step = (full.patch_embed.patch_size[0],) * 2 if is_vit else (CNN_GRID_STRIDE, 32)
    side = image_size if image_size is not None else grid * patch
    if side <= 0 or side % step:
        asked = f"teacher.image_size {side}" if image_size is not None else f"teacher.grid {grid} (side {side})"
        raise TeacherError(f"{asked}: {name} needs a multiple of {step}, e.g. {max(1, round(side / step)) * step}")
    if is_vit:
        depth = len(full.blocks)
        blocks = blocks or tuple(dict.fromkeys((1, max(1, depth // 3), max(1, 2 * depth // 3), depth)))
        if min(blocks) < 1 or max(blocks) > depth:
            raise TeacherError(f"teacher.blocks {list(blocks)}: {name} has blocks 1 to {depth}")
        backbone = full
    else:
        backbone, blocks = _feature_levels(full, name, arguments), ()
    teacher = Teacher(backbone, blocks, side, mean, std)
    where = "weights from the hub" if source.weights == "hub" else f"weights from {Path(source.weights).name}"
    where = "RANDOM weights (asked for by name; nothing to transfer)" if source.random else where
    parts = [POCKET] if text == POCKET else [source.name or name, where]
    if TRAINED_ON in metadata and not source.random:
        parts.append(f"pre-trained on {metadata[TRAINED_ON]}")
    teacher.description = ", ".join([*parts, f"{side} x {side}"])
    teacher.identity = _identity(teacher, name, blocks)
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
        except (OSError, RuntimeError, ValueError) as error:
            raise _not_from_the_hub(source.name, error) from error
        return name, arguments or {}, {}
    metadata = _described(source)
    name = source.name or metadata.get("architecture", "")
    if not name:
        raise TeacherError(
            f"teacher {text}: the file does not name its architecture in its metadata; write NAME={source.weights}, NAME a timm model"
        )
    return name, json.loads(metadata.get("model_args", "{}")), metadata


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
        return "the hub is out of reach"
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
        except (OSError, RuntimeError) as error:
            if from_hub:
                raise _not_from_the_hub(from_hub, error) from error
            raise TeacherError(f"teacher {name}: cannot be built with {arguments}: {error}") from error


def _not_from_the_hub(name: str, error: Exception) -> TeacherError:
    return TeacherError(
        f"teacher {name}: its weights could not be had from the hub ({type(error).__name__}). "
        f"Either connect once (they are cached), or fetch the file elsewhere and give {'NAME' if name.startswith(HUB) else name}=FILE; "
        f"{POCKET} comes with this project, and is no foundation model"
    )


def _described(source: TeacherSource) -> dict[str, str]:
    """The metadata of a file that describes itself, {} of others."""
    return _metadata(Path(source.weights)) if source.weights.endswith(".safetensors") else {}


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise TeacherError(f"teacher weights {path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise TeacherError(f"teacher weights {path}: not a whole safetensors file ({error})") from error


def _load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Strict but for the classifier and masking tokens, which a feature extractor does not use."""
    if not path.is_file():
        raise TeacherError(f"teacher weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)  # plain tensors only: executes nothing
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"teacher weights {path}: refused, it holds more than plain tensors, or is not whole ({str(error)[:120]})"
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        raise TeacherError(f"teacher weights {path}: cannot be read ({type(error).__name__}: {str(error)[:120]})") from error
    if isinstance(model, VisionTransformer):
        state = checkpoint_filter_fn(dict(state), model)
    state = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    own = model.state_dict()
    classifier = tuple(key for key in state if key not in own and key.split(".")[0] in ("head", "fc", "classifier"))
    state = {key: tensor for key, tensor in state.items() if key not in classifier}
    missing = sorted(set(own) - set(state))
    additional = sorted(set(state) - set(own))
    shapes = [f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}" for k in own if k in state and state[k].shape != own[k].shape]
    if missing or additional or shapes:
        problems = [f"missing {missing[:3]}"] * bool(missing) + [f"additional {additional[:3]}"] * bool(additional) + shapes[:3]
        raise TeacherError(f"teacher weights {path} do not fit {name}: {'; '.join(problems)}")
    model.load_state_dict(state)


def _feature_levels(full: nn.Module, name: str, arguments: dict) -> nn.Module:
    """The CNN's `features_only` form with the weights of `full`, at strides 4, 8, 16 and 32."""
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    try:
        reductions = timm.create_model(name, features_only=True, **arguments).feature_info.reduction()
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


def _identity(teacher: Teacher, name: str, blocks: tuple[int, ...]) -> str:
    digest = hashlib.sha256(json.dumps([name, list(blocks), teacher.image_size]).encode())
    for key, tensor in sorted({**teacher.backbone.state_dict(), "mean": teacher.mean, "std": teacher.std}.items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
