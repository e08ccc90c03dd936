"""What the hub keeps of a timm model: config.json and weights; in a repository (hf-hub:OWNER/REPOSITORY) or copied into a folder.

config.json names the architecture, its arguments, mean and SD. Arguments that JSON cannot hold, and some that it could, stand only in the
code on a model's page: LayerScale of UNI, the gated MLPs of Virchow and UNI2. The weights tell them (`told_by_weights`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from vfmgl_lib.models.teacher_names import TeacherError

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in this order, as timm looks for them
GATED = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}  # the gated MLP of the DINOv2 family, in timm's words
ANY_SCALE = 1e-5  # LayerScale's start: the weights replace it


def split_repository(repository: str) -> tuple[str, str | None]:
    """OWNER/REPOSITORY@REVISION in its two parts; None: the latest revision."""
    name, _, revision = repository.partition("@")
    return name, revision or None


def hub_file(repository: str, *names: str, cached_only: bool = False) -> Path:
    """The first of these files that a repository has, from the hub's cache or from the hub.

    Raises: EntryNotFoundError: it has none of them. Other errors of the hub's client are passed on.
    """
    repo, revision = split_repository(repository)
    for name in names[:-1]:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision, local_files_only=cached_only))
        except EntryNotFoundError:
            continue
    return Path(huggingface_hub.hf_hub_download(repo, names[-1], revision=revision, local_files_only=cached_only))


def read_config(path: Path) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Architecture, arguments, and mean and std as JSON (those that timm takes where there are none), of a config.json in timm's form.

    Raises: TeacherError: it is not one.
    """
    from timm.models import PretrainedCfg

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name, arguments = config["architecture"], config.get("model_args") or {}
        known = config.get("pretrained_cfg") or config  # at the root in the first years of the hub
        given = {key: known.get(key) for key in ("mean", "std")}
        numbers = {key: json.dumps(getattr(PretrainedCfg(), key) if value is None else value) for key, value in given.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        expected = 'expected JSON of timm\'s form with "architecture", "model_args" and "pretrained_cfg"'
        raise TeacherError(f"teacher {path}: {expected} ({type(error).__name__}: {str(error)[:80]})") from error
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TeacherError(
            f'teacher {path}: "architecture" must be a text and "model_args" a table, got {name!r:.60} and {arguments!r:.60}'
        )
    return name, arguments, numbers


def told_by_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of a timm ViT by which it becomes the one that these weights are of; {} where it is that already, or nothing is known.

    Args:
        network: as its config describes it; without content.
        tensors: of the weights' file, perhaps below a prefix.
    """
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(network, VisionTransformer):
        return {}
    own = network.state_dict()

    def shape(name: str) -> tuple[int, ...]:
        return next((tuple(tensor.shape) for key, tensor in tensors.items() if key == name or key.endswith(f".{name}")), ())

    told: dict[str, Any] = {}
    if shape("blocks.0.ls1.gamma") and "blocks.0.ls1.gamma" not in own:
        told["init_values"] = ANY_SCALE
    if len(registers := shape("reg_token")) == 3 and "reg_token" not in own:
        told["reg_tokens"] = registers[1]
    first, second = shape("blocks.0.mlp.fc1.weight"), shape("blocks.0.mlp.fc2.weight")
    expected = tuple(own["blocks.0.mlp.fc2.weight"].shape) if "blocks.0.mlp.fc2.weight" in own else ()
    if len(first) == len(second) == 2 and first[0] == 2 * second[1] and second != expected:
        told |= GATED
        if first[0] != own["blocks.0.mlp.fc1.weight"].shape[0]:
            told["mlp_ratio"] = (first[0] + 0.5) / first[1]  # timm takes the whole number below
    return told
