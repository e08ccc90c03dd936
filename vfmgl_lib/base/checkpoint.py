"""Checkpoints: tensors as safetensors, their hashes in a JSON index."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vfmgl_lib.base.files import sha256, write_json

INDEX = "index.json"


class CheckpointError(ValueError):
    """A checkpoint that is truncated, altered or incomplete; the message names the file."""


def save_tensors(folder: Path, tensors: dict[str, dict[str, Tensor]]) -> None:
    """Writes each state as folder/NAME.safetensors, with all hashes in folder/index.json.

    Raises: OSError: a file that cannot be written; names it.
    """
    index = {}
    for name, state in tensors.items():
        file = folder / f"{name}.safetensors"
        try:
            safetensors.torch.save_file({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, file)
        except SafetensorError as error:
            raise OSError(f"checkpoint {file}: cannot be written: {error}") from error
        index[name] = sha256(file)
    write_json(folder / INDEX, index)


def load_tensors(folder: Path, name: str, remedy: str = "") -> dict[str, Tensor]:
    """Reads one state that `save_tensors` wrote.

    Args:
        remedy: said where it cannot be read; "": that the round can be made again from the one before.
    Raises: CheckpointError: for a missing, truncated or altered file.
    """
    file = folder / f"{name}.safetensors"
    remedy = remedy or f"remove the folder {folder} to resume from the round before"
    try:
        expected = json.loads((folder / INDEX).read_text(encoding="utf-8"))[name]
        actual = sha256(file)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {file}: it or its entry in {INDEX} cannot be read ({error!r}); {remedy}") from error
    if actual != expected:
        size = file.stat().st_size
        raise CheckpointError(
            f"checkpoint {file}: truncated or altered ({size} bytes, sha256 {actual[:12]}... instead of {expected[:12]}...); {remedy}"
        )
    try:
        return safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {file}: not a safetensors file ({error}); {remedy}") from error
