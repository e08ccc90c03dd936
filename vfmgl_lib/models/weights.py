"""Files with a network's weights: read without executing anything, unwrapped and fitted to the network, or refused in one line.

Training seldom leaves the bare table name -> tensor. One rule unwraps: tables in tables are one table whose names are joined by dots
({"teacher": {"backbone.norm.weight": ...}} has teacher.backbone.norm.weight), and the weights are what stands below the prefix under which
most of the network's own names are. Of several with as many it is model or state_dict at the root, else the one of an average
over training (teacher, ema, momentum: what DINO and others publish); where that does not decide either, the file is refused. What stands
beside them is left out: heads of the pre-training, optimiser states. What a file is, its content says, not its suffix.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import re
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vfmgl_lib.models.teacher_names import TeacherError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

log = logging.getLogger(__name__)
AVERAGED = re.compile(r"teacher|ema(?![a-z])|momentum|encoder_k|target|average", re.IGNORECASE)
# Layers that other programs put around a network's own, anywhere in a name: torch.compile, FSDP, activation checkpoints, mixed precision.
AROUND = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
CHUNKED = re.compile(r"\bblocks\.\d+\.(\d+)\.")  # DINOv2 trains in chunks of blocks; the second number counts through
ROOTS = ("model.state_dict.", "model.", "state_dict.", "")  # below which timm looks
CONVERTED = (
    "preprocessor.patchifier.proj.weight",
    "radio_model.model.patch_generator.embedder.weight",
)  # timm's own names are in them, too
PATCHES = ("patch_embed.proj.weight", "visual.conv1.weight", "preprocessor.patchifier.proj.weight")  # in the layouts that timm reads
# A ViT's own tokens, by all their names: where a file has more of them than the network, each map differs.
TOKENS = re.compile(r"(?:reg|register|storage|dist|distill)_tokens?")
COUNTS = "num_batches_tracked"  # old files lack them, and no feature depends on them
ALIKE = 0.9  # of the names under the fullest prefix: one with so many is the same network, if not whole then to be refused
DEEPEST = 12  # parts of a network's own names, at most
# How a file begins -> what it is and what to do; beside them there are safetensors, torch's zip and torch's older pickles.
FOREIGN = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights; fetch them with git lfs pull",
    b"<": "is a web page, not weights; was the download refused?",
    b"\x89HDF": "is HDF5 (Keras), expected safetensors or torch's format",
    b"\x1f\x8b": "is packed with gzip; unpack it first",
    b"GGUF": "is GGUF, expected safetensors or torch's format",
}
RESAVE = (
    "save its weights alone by safetensors.torch.save_file, where it was made or after torch.load(..., weights_only=True) within "
    "torch.serialization.safe_globals([...]) of classes that you trust"
)


@dataclass(frozen=True)
class Weights:
    """Weights in a network's own names.

    Attributes:
        state: float32; what a feature extractor does without (classifier, counts of batches) may be missing.
        prefix: below which they were found in the file; "": it holds nothing else.
        positions: side of the grid of a ViT's positions in the file, None where there are none.
    """

    state: dict[str, Tensor]
    prefix: str
    positions: int | None


def is_safetensors(path: Path) -> bool:
    """By content; a file that is not there is what its suffix says.

    Raises: TeacherError: it cannot be read.
    """
    start = _start(path) if path.is_file() else b""
    return start[8:9] == b"{" if len(start) > 8 else path.suffix == ".safetensors"


def read_metadata(path: Path) -> dict[str, str]:
    """A safetensors file's metadata, {} without.

    Raises: TeacherError: no such file, or one that is not whole.
    """
    _start(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise TeacherError(f"teacher weights {path}: not a whole safetensors file ({error})") from error


def described(path: Path, metadata: Mapping[str, str], key: str, kind: type) -> Any:
    """A value of the metadata, which is JSON.

    Raises: TeacherError: it is not, or is of another kind.
    """
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise TeacherError(f"teacher weights {path}: {key} in its metadata is {metadata[key]!r:.80}, expected a {kind.__name__} in JSON")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file under their names in it, tables in tables joined by dots.

    Raises: TeacherError: a file that cannot be read, or holds more than tensors and plain values, or no tensors.
    """
    content = _read(path)
    tensors = _tensors(content)
    if not tensors:
        raise TeacherError(f"teacher weights {path}: hold no tensors but {_outline(content)}, expected a table of them")
    return tensors


def read_weights(path: Path, network: nn.Module, name: str, tensors: dict[str, Tensor] | None = None) -> Weights:
    """The weights of a file for this network, whose own content is not looked at (it may be on the meta device).

    Args:
        name: of the network, for messages.
        tensors: of the file, where they have been read; None: they are read.
    Raises: TeacherError: a file that cannot be read or holds more than tensors and plain values; weights of another network, patch size or
        number of channels; values that are no numbers.
    """
    from timm.models.vision_transformer import VisionTransformer

    tensors = read_tensors(path) if tensors is None else tensors
    own = network.state_dict()
    vit = isinstance(network, VisionTransformer)
    if vit:
        tensors = {CHUNKED.sub(r"blocks.\1.", key): tensor for key, tensor in tensors.items()}
    needed = _needed(own, network)
    prefix = _prefix(path, name, tensors, needed)
    state = below(tensors, prefix)
    positions = _side(state["pos_embed"]) if vit and "pos_embed" in state else None
    if isinstance(network, VisionTransformer):
        state = _in_timms_layout(path, state, network, name)
    elif _problems(state, own, needed, network, bool(prefix)):
        prefix, state = _converted(tensors, prefix, own, needed, network)
    return Weights(_fitted(path, state, own, needed, network, name, bool(prefix)), prefix.removesuffix("."), positions)


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(32)
    except FileNotFoundError as error:
        raise TeacherError(f"teacher weights {path}: no such file") from error
    except OSError as error:
        raise TeacherError(f"teacher weights {path}: cannot be read ({error.strerror})") from error


def _read(path: Path) -> object:
    start = _start(path)
    if not start:
        raise TeacherError(f"teacher weights {path}: the file is empty")
    if is_safetensors(path):
        try:
            return load_file(path)
        except (SafetensorError, RuntimeError, ValueError, OSError) as error:
            raise TeacherError(f"teacher weights {path}: cannot be read ({type(error).__name__}: {str(error)[:120]})") from error
    if foreign := next((text for magic, text in FOREIGN.items() if start.startswith(magic)), ""):
        raise TeacherError(f"teacher weights {path}: the file {foreign}")
    if start.startswith(b"PK"):
        _check_zip(path)
    elif not start.startswith(b"\x80"):
        raise TeacherError(f"teacher weights {path}: begins with {start[:8]!r}, expected safetensors or a file of torch.save")
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:  # opened, because torch goes by the suffix of a path
            warnings.simplefilter("ignore")  # torch's, about pickles of other programs: the error says it
            return torch.load(file, map_location="cpu", weights_only=True)  # plain values only: executes nothing
    except Exception as error:  # broken bytes lead the unpickler anywhere
        text = str(error)
        if found := re.search(r"GLOBAL (\S+)|[Uu]nsupported class (\S+)", text):
            more = f"it holds more than tensors and plain values, {found[1] or found[2]}"
            raise TeacherError(f"teacher weights {path}: refused, {more}; {RESAVE}") from error
        cause = " ".join(text.rpartition("WeightsUnpickler error:")[2].split())[:120] or type(error).__name__
        raise TeacherError(f"teacher weights {path}: refused, no plain tensors of torch.save, or not whole ({cause})") from error


def _check_zip(path: Path) -> None:
    """Raises: TeacherError: a zip that torch.save has not written, or whose parts are larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise TeacherError(f"teacher weights {path}: refused, not a whole file of torch.save ({error})") from error
    names = [part.filename.partition("/")[2] for part in parts]
    if "constants.pkl" in names:
        raise TeacherError(f"teacher weights {path}: is TorchScript, a program; save its state_dict() as safetensors instead")
    if "data.pkl" not in names:
        found = ", ".join(part.filename for part in parts[:3]) or "nothing"
        raise TeacherError(f"teacher weights {path}: a zip with {found}; expected safetensors or a file of torch.save")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise TeacherError(f"teacher weights {path}: its parts are compressed or not whole; torch.save writes them as they are")


def _tensors(content: object) -> dict[str, Tensor]:
    """All plain tensors in tables and lists, under their names joined by dots; what is there twice or in itself counts once."""
    found: dict[str, Tensor] = {}
    waiting, seen = [("", content)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not (value.is_quantized or value.is_meta):
                found[AROUND.sub("", name)] = value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{name}.{key}" if name else str(key), part) for key, part in items]
    return found


def _needed(own: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """What a feature extractor uses: all but the classifier."""
    classifier = tuple(f"{layer}." for layer in _classifier(network))
    return {key: tensor for key, tensor in own.items() if not key.startswith(classifier)}


def _classifier(network: nn.Module) -> tuple[str, ...]:
    layers = (getattr(network, "default_cfg", None) or {}).get("classifier") or ()
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _prefix(path: Path, name: str, tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> str:
    hits: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for length in range(1, min(len(parts), DEEPEST) + 1):
            if (inner := ".".join(parts[-length:])) in needed and not inner.endswith(COUNTS):
                hits[key.removesuffix(inner)] += 1
    if not hits or any(key.endswith(CONVERTED) for key in tensors):  # it may be a layout that timm converts
        return next(root for root in ROOTS if not root or any(key.startswith(root) for key in tensors))
    tied = [prefix for prefix, count in hits.items() if count >= ALIKE * max(hits.values())]
    for preferred in (ROOTS.__contains__, AVERAGED.search):
        tied = [prefix for prefix in tied if preferred(prefix)] or tied
    if len(tied) > 1 and max(hits.values()) < len(needed) / 2:  # names that are alike by chance: another network's
        return ""
    if len(tied) > 1:
        raise TeacherError(
            f"teacher weights {path}: {name} is in it {len(tied)} times, as {', '.join(sorted(tied)[:3])}; save one of them alone"
        )
    return tied[0]


def _in_timms_layout(path: Path, state: dict[str, Tensor], network: VisionTransformer, name: str) -> dict[str, Tensor]:
    from timm.models.vision_transformer import checkpoint_filter_fn

    channels, *size = network.patch_embed.proj.weight.shape[1:]
    first = next((state[key] for key in PATCHES if key in state and state[key].ndim == 4), None)
    if first is not None and (first.shape[1] != channels or list(first.shape[2:]) != size):
        found = f"patches of {first.shape[2]} x {first.shape[3]} pixels in {first.shape[1]} channels"
        raise TeacherError(
            f"teacher weights {path} do not fit {name}: {found}, expected {size[0]} x {size[1]} in {channels}; name the model they are of"
        )
    try:
        return checkpoint_filter_fn(dict(state), network)
    except Exception as error:  # written for whole checkpoints of known makers
        raise TeacherError(f"teacher weights {path} do not fit {name}: timm cannot convert them ({str(error)[:120]})") from error


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _converted(
    tensors: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor], needed: Mapping[str, Tensor], network: nn.Module
) -> tuple[str, dict[str, Tensor]]:
    """The same weights through timm's own converter of their makers' layout, where they fit then; else as they are.

    The converter of SAM, for one, looks for image_encoder. at the beginning of the names. So it is tried at each depth of the prefix. Those
    of some families resample what belongs to another patch, window or image size; such weights are another network's and are refused.
    """
    convert: Any = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    parts = prefix.removesuffix(".").split(".") if prefix else []
    for depth in reversed(range(len(parts) + 1)) if convert else ():
        outer = "".join(f"{part}." for part in parts[:depth])
        raw = below(tensors, outer)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the converter of EVA prints
                state = convert(dict(raw), network)
        except Exception as error:  # written for whole checkpoints of known makers
            log.debug("%s does not convert these weights: %r", type(network).__module__, error)
            continue
        resampled = [key for key, tensor in state.items() if key in raw and tensor.numel() != raw[key].numel()]
        if not resampled and not _problems(state, own, needed, network, bool(prefix)):
            return outer, state
    return prefix, below(tensors, prefix)


def _problems(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], needed: Mapping[str, Tensor], network: nn.Module, wrapped: bool
) -> list[str]:
    """Why weights do not fit a network; [] if they do."""
    heads = {"head", "fc", "classifier", *(layer.split(".")[0] for layer in _classifier(network))}
    others = {key: key.split(".")[0] for key in state if key not in own}
    additional = sorted(
        key for key, part in others.items() if part not in heads and (not wrapped or hasattr(network, part) or TOKENS.fullmatch(part))
    )
    missing = sorted(key for key in needed if key not in state and not key.endswith(COUNTS))
    wrong = [
        f"{key} {tuple(state[key].shape)} of {state[key].dtype} instead of {tuple(tensor.shape)} of {tensor.dtype}"
        for key, tensor in needed.items()
        if key in state and (state[key].shape != tensor.shape or state[key].is_floating_point() != tensor.is_floating_point())
    ]
    return [f"missing {missing[:3]}"] * bool(missing) + [f"additional {additional[:3]}"] * bool(additional) + wrong[:3]


def _fitted(
    path: Path,
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    network: nn.Module,
    name: str,
    wrapped: bool,
) -> dict[str, Tensor]:
    """Strict but for what a feature extractor does not use; beside wrapped weights there may be others, but not inside the network's parts:
    these are of a deeper network, or of one that computes otherwise.
    """
    there = {key: tensor for key, tensor in state.items() if key in needed}
    if problems := _problems(state, own, needed, network, wrapped):
        nothing = "" if there else f"; none of its names is {name}'s, expected {_expected(own)}"
        raise TeacherError(f"teacher weights {path} do not fit {name}: {'; '.join(problems)}{nothing}")
    there = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in there.items()}
    if broken := [key for key, tensor in there.items() if not torch.isfinite(tensor).all()]:
        raise TeacherError(f"teacher weights {path}: {len(broken)} tensors hold NaN or infinite values, e.g. {broken[0]}")
    return there


def _side(positions: Tensor) -> int | None:
    """Of the grid of a ViT's positions; up to five of them are of class and register tokens."""
    count = positions.shape[1] if positions.ndim == 3 else 0
    return next((math.isqrt(count - other) for other in range(min(count, 6)) if math.isqrt(count - other) ** 2 == count - other), None)


def _outline(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a table with {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    return f"a {type(content).__name__}"


def _expected(own: Mapping[str, Tensor]) -> str:
    return f"a table of tensors with names such as {', '.join(list(own)[:3])}"
