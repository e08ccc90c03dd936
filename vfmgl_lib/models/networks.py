"""timm's networks as feature extractors, through timm's common interface: `forward_intermediates`, `feature_info`, its input sizes.

A network of **blocks** has one grid and one number of channels throughout (plain transformers, also with windows or rotary positions;
mixers): the maps after four of its blocks are one stack. Class and register tokens are no part of a map. A network of **levels** (CNNs,
Swin, Hiera, ConvNeXt, MaxViT, ...) has a grid and channels of its own at each: its four deepest levels are a stack each. Maps go through
the network's own final norm where timm applies it to them: after every block, or at the last level alone. SAM's comes with convolutions
(its neck), which only the last block was trained with, so its blocks are taken without.

Sizes, as timm knows them: most networks take any side that the patch (or the deepest stride) divides. Windows that were cut for one side
(Swin) fit in its whole multiples. The others take the side they were built for and no other.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import timm
import timm.layers
import torch
from timm.models import build_model_with_cfg, get_model_input_config, is_model_in_modules
from torch import Tensor, nn

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.models.teacher_names import TeacherError
from vfmgl_lib.models.timm_names import check_name

log = logging.getLogger(__name__)
CNN_STRIDES = (4, 8, 16, 32)
GRID_STRIDE = 16  # a hierarchical network's grid is that of stride 16, so that `grid` means about the same for all
# Arguments of `timm.create_model` that are none of the model's: they choose weights, even files and folders, or another kind of network.
CONTROLS = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters} - {"kwargs"}
CONTROLS |= {"features_only", "model_name"}
COUNTS_OF_LAYERS = ("layers", "num_layers", "stages", "num_blocks", "block_config", "levels", "k_sec")  # in timm's words, beside depth(s)
MOST_LAYERS, LARGEST = 1000, 10**9  # that an argument may ask for; a tensor too wide is refused by the weights' own shapes
LEVELS = 4  # at most, of a hierarchical network


@dataclass(frozen=True)
class Form:
    """Which maps of a network are taken, and which sides its square images may have.

    Attributes:
        indices: places of the maps among all that the network gives, from 0; of a listed one none are needed.
        names: of the maps, "block 4" or "stride 16".
        blocks: whether they are of blocks: one stack of all.
        norm: whether they go through the network's final norm.
        listed: whether the network is in timm's `features_only` form, which gives these maps and no others.
        step: pixels that divide every side; of blocks the patch.
        own: the side that the network was built for.
        sides: those that it takes: "any" multiple of `step`, whole "multiples" of `own`, or "own" alone.
        usual: arguments that it is built with unless others are asked for: for images of any size.
    """

    indices: tuple[int, ...]
    names: tuple[str, ...]
    blocks: bool
    norm: bool
    listed: bool
    step: int
    own: int
    sides: Literal["any", "multiples", "own"]
    usual: dict[str, Any]

    def maps(self, network: Any, images: Tensor) -> list[Tensor]:
        """Stacks (B, M, C, g, g) of images (B, 3, S, S), normalised as the network expects."""
        if self.listed:
            return [level[:, None] for level in network(images)]
        options = {"norm": self.norm, "output_fmt": "NCHW", "intermediates_only": True}
        maps = network.forward_intermediates(images, indices=list(self.indices), **options)
        return [torch.stack(maps, dim=1)] if self.blocks else [level[:, None] for level in maps]

    def side(self, name: str, grid: int, image_size: int | None) -> int:
        """The side of the images, in pixels: `image_size`, else the one for this grid, else the nearest that the network takes.

        Args:
            name: of the network, for messages.
        Raises: TeacherError: an `image_size` that it does not take, or a grid that is none.
        """
        side = image_size if image_size is not None else grid * (self.step if self.blocks else GRID_STRIDE)
        step = self.step if self.sides == "any" else self.own
        nearest = self.own if self.sides == "own" else max(1, round(side / step)) * step
        if side == nearest:
            return side
        asked = f"teacher.image_size {side}" if image_size is not None else f"teacher.grid {grid} (side {side})"
        if self.sides == "any" or side <= 0:
            raise TeacherError(f"{asked}: {name} needs a multiple of {step}, e.g. {nearest}")
        if image_size is not None:
            takes = (
                f"whole multiples of {step}, where its windows fit" if self.sides == "multiples" else f"{step} x {step} and no other size"
            )
            raise TeacherError(f"{asked}: {name} takes {takes}; write {nearest}, or leave teacher.image_size out")
        log.warning("%s: %s takes no such image; it is given %d x %d", asked, name, nearest, nearest)
        return nearest


def network_form(name: str, arguments: dict, blocks: tuple[int, ...] | None = None) -> Form:
    """What a network gives, without building it in memory.

    Args:
        name, arguments: of timm's model.
        blocks: 1-based; None: 1, D/3, 2D/3, D. Only of a network of blocks.
    Raises: TeacherError: an unknown network, one without maps, blocks that it does not have.
    """
    with torch.device("meta"):
        network = create(name, {key: value for key, value in arguments.items() if key != "dynamic_img_size"}).eval()
    if _is_listed(name, arguments, network):
        if blocks:
            raise _has_no_blocks(name, blocks, [f"stride {stride}" for stride in CNN_STRIDES])
        (own, _), _ = _own_size(network)
        return Form((), tuple(f"stride {stride}" for stride in CNN_STRIDES), False, False, True, max(CNN_STRIDES), own, "any", {})
    return form_of(network, name, blocks)


def form_of(network: Any, name: str, blocks: tuple[int, ...] | None = None) -> Form:
    """The form of a network that timm has built on the meta device with its own arguments, by `forward_intermediates`.

    Raises: as `network_form`.
    """
    info = _feature_info(network, name)
    strides, widths = [one["reduction"] for one in info], [one["num_chs"] for one in info]
    same = len({*zip(strides, widths, strict=True)}) == 1 < len(info)
    if same:
        numbers = _checked_blocks(name, blocks, len(info))
        indices, names = [number - 1 for number in numbers], [f"block {number}" for number in numbers]
    else:
        indices, names = _levels(strides)
        if blocks:
            raise _has_no_blocks(name, blocks, names)
    (own, width), fixed = _own_size(network)
    dynamic = "dynamic_img_size" in inspect.signature(type(network).__init__).parameters
    any_side = not fixed or (same and (dynamic or hasattr(network, "set_input_size")))
    step = strides[0] if same else max(strides[index] for index in indices)
    sides: Literal["any", "multiples", "own"] = "any" if any_side else "multiples" if dynamic else "own"
    if sides != "any" and own != width:
        raise TeacherError(f"teacher {name}: it takes images of {own} x {width} alone; only networks of square images can be used")
    usual: dict[str, Any] = {"dynamic_img_size": True} if dynamic else {}
    if is_model_in_modules(name.split(".")[0], ["vision_transformer"]):
        usual = {"num_classes": 0, "dynamic_img_size": True}
    return Form(tuple(indices), tuple(names), same, _has_norm(network, info, own), False, step, own, sides, usual)


def create(name: str, arguments: dict, from_hub: str = "") -> nn.Module:
    """A network of timm's.

    Args:
        arguments: of its model, none of `create_model` itself; layers may be named by timm's names of them (`mlp_layer`: "SwiGLUPacked").
        from_hub: the hub's name of its weights; "": random ones, the same each time.
    Raises: TeacherError: an unknown name, arguments that do not fit. Errors of the hub's client are passed on.
    """
    check_name(name)
    _check_arguments(name, arguments)
    layers = {key: getattr(timm.layers, value, value) for key, value in arguments.items() if key == "mlp_layer" and isinstance(value, str)}
    with torch_seed(seed_sequence(0, "teacher", name)):
        try:
            return timm.create_model(from_hub or name, pretrained=bool(from_hub), **(arguments | layers))
        except TypeError as error:
            raise TeacherError(f"teacher {name}: its model arguments {arguments} do not fit: {error}") from error
        except Exception as error:  # what a network's own code raises on arguments that cannot be, and the hub's client
            if from_hub:
                raise
            raise TeacherError(f"teacher {name}: cannot be built with {arguments}: {error}") from error


def _check_arguments(name: str, arguments: dict) -> None:
    """Arguments may come out of a file that somebody else wrote, and are looked at before anything is built.

    Raises: TeacherError: one that is none of the model's, a number or a list that would exhaust the memory.
    """
    if controls := sorted(CONTROLS & arguments.keys()):
        raise TeacherError(
            f"teacher {name}: model arguments {', '.join(controls)} are not the network's but say how timm builds and loads it; take them "
            "out, and name weights by NAME=FILE"
        )
    tables = [arguments]
    while tables:
        for key, value in tables.pop().items():
            most = MOST_LAYERS if "depth" in key or key in COUNTS_OF_LAYERS else LARGEST
            waiting, numbers = [value], list[float]()
            while waiting:
                part = waiting.pop()
                if isinstance(part, dict):
                    tables.append(part)
                elif isinstance(part, (list, tuple)):
                    waiting += part
                elif isinstance(part, (int, float)):
                    numbers.append(part)
            # Each first: a sum of very large ones overflows. NaN is not at most anything.
            if len(numbers) > MOST_LAYERS or not all(number <= most for number in numbers) or sum(numbers) > most:
                raise TeacherError(
                    f"teacher {name}: model argument {key} is {str(value)[:60]}; at most {most} can be, and {MOST_LAYERS} entries"
                )


def extractor(full: nn.Module, form: Form, name: str, arguments: dict, side: int) -> nn.Module:
    """A network with its weights as the form takes it, for images of this side."""
    if form.listed:
        return _feature_levels(full, name, arguments)
    network: Any = full
    size, fixed = _own_size(network)
    if form.sides == "multiples" and size != (side, side) and hasattr(network, "set_input_size"):
        # Windows stay as they were trained; where the larger grid has several, they are shifted as everywhere else.
        network.set_input_size(img_size=(side, side), window_size=_windows(network))
    elif fixed and size != (side, side) and hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(side, side))
    return full


def _windows(network: Any) -> list:
    """Of each of a Swin's stages the sides of its windows."""
    stages = network.layers if hasattr(network, "layers") else network.stages
    return [stage.blocks[0].window_size for stage in stages]


def network_for_counting(name: str, arguments: dict, side: int) -> nn.Module:
    """The whole network without a classifier, for images of this side, with random weights (or none, on the meta device)."""
    form = network_form(name, arguments)
    network = create(name, {"num_classes": 0} | form.usual | arguments)
    return network if form.listed else extractor(network, form, name, arguments, side)


def _feature_info(network: Any, name: str) -> list[dict]:
    info = getattr(network, "feature_info", None)
    if not info or not hasattr(network, "forward_intermediates"):
        family = type(network).__module__.rpartition(".")[2]
        raise TeacherError(
            f"teacher {name}: timm's {family} gives no maps at several depths (it has no forward_intermediates with feature_info); others "
            "that are alike and do: " + ", ".join(_alike(name))
        )
    return [dict(one) for one in info]


def _alike(name: str) -> list[str]:
    """Names near this one whose networks give maps."""
    found = []
    for near in get_close_matches(name.split(".")[0], timm.list_models(), 6, 0.3):
        with torch.device("meta"):
            network = timm.create_model(near)
        if getattr(network, "feature_info", None) and hasattr(network, "forward_intermediates"):
            found.append(near)
    return found[:3] or ["vit_small_patch16_224", "convnext_tiny", "resnet50"]


def _checked_blocks(name: str, blocks: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
    blocks = blocks or tuple(dict.fromkeys((1, max(1, depth // 3), max(1, 2 * depth // 3), depth)))
    if min(blocks) < 1 or max(blocks) > depth:
        raise TeacherError(f"teacher.blocks {list(blocks)}: {name} has blocks 1 to {depth}")
    return blocks


def _has_no_blocks(name: str, blocks: tuple[int, ...], levels: list[str]) -> TeacherError:
    return TeacherError(
        f"teacher.blocks {list(blocks)}: {name} has no blocks of one grid but levels ({', '.join(levels)}), all of which are taken; leave "
        "teacher.blocks out"
    )


def _levels(strides: list[int]) -> tuple[list[int], list[str]]:
    """The deepest levels and their names: by stride, or by number where several have one stride."""
    indices = list(range(len(strides)))[-LEVELS:]
    taken = [strides[index] for index in indices]
    if len(set(taken)) == len(taken):
        return indices, [f"stride {stride}" for stride in taken]
    return indices, [f"level {index + 1}" for index in indices]


def _own_size(network: nn.Module) -> tuple[tuple[int, int], bool]:
    """Height and width that a network was built for, and whether it takes no other."""
    config = get_model_input_config(network)
    height, width = config["input_size"][-2:]
    return (height, width), config["fixed_input_size"]


def _has_norm(network: Any, info: list[dict], side: int) -> bool:
    """Whether timm applies the final norm to its maps, and nothing else with it."""
    if any(one.get("num_chs_norm", one["num_chs"]) != one["num_chs"] for one in info):
        return False
    try:
        network.forward_intermediates(torch.zeros(1, 3, side, side, device="meta"), indices=1, norm=True, intermediates_only=True)
    except AssertionError as error:
        return "norm" not in str(error)
    except Exception as error:  # a network that computes with its values cannot be tried without any; its own error comes when it is used
        log.debug("%s on the meta device: %r", type(network).__name__, error)
    return True


def _is_listed(name: str, arguments: dict, whole: nn.Module) -> bool:
    """Whether timm's `features_only` form gives the strides 4 to 32 under the network's own names of its tensors.

    So it is of the CNNs that 0.1.0 knew, whose features are kept under these names.
    """
    strides = {one["reduction"] for one in _feature_info(whole, name)}
    if not strides.issuperset(CNN_STRIDES):
        return False
    options = {"features_only": True} | {key: value for key, value in arguments.items() if key != "num_classes"}
    try:
        with torch.device("meta"):
            network: Any = timm.create_model(name, **options)
            levels: Any = timm.create_model(name, out_indices=_cnn_indices(network), **options)
    except (RuntimeError, AttributeError, ValueError, AssertionError, TypeError, KeyError) as error:
        log.debug("%s has no features_only form: %r", name, error)
        return False
    return levels.feature_info.reduction() == list(CNN_STRIDES) and set(levels.state_dict()) <= set(whole.state_dict())


def _cnn_indices(network: Any) -> list[int]:
    reductions = network.feature_info.reduction()
    return [reductions.index(stride) for stride in CNN_STRIDES]


def _feature_levels(full: nn.Module, name: str, arguments: dict) -> nn.Module:
    """The CNN's `features_only` form with the weights of `full`, at strides 4, 8, 16 and 32."""
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    indices = _cnn_indices(timm.create_model(name, features_only=True, **arguments))
    levels = timm.create_model(name, features_only=True, out_indices=indices, **arguments)
    state = full.state_dict()
    levels.load_state_dict({key: state[key] for key in levels.state_dict()})
    return levels
