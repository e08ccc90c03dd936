"""Students out of timm: any CNN whose stages can be tapped, as a classifier or as the encoder of a UNet.

Everything that the method needs to know of a student is asked of the network, by timm's public interface alone: `forward_intermediates`
(the maps at the end of each stage), `forward_head`, `get_classifier`, `prune_intermediate_layers`. Single architectures are
not known here.

Stages. They are called stage1, stage2, ... in order; the first may be the stem. The last stage's map is what the head reads, with the
layers that timm has between its last block and the head (EfficientNet's 1x1 convolution). A stage's modules are those whose parameters its
map depends on and no map before it, which is read off the graph of one pass. The paper's ResNet18 is tapped before the first batch
normalisation; `resnet34` is tapped behind its activation, as timm does.

Random numbers. Dropout and stochastic depth are off, whatever the network's defaults are: HGKT differentiates imagined steps that must see
the function of the kept step, and a resumed run ends with the same bits. `settled` also makes layers that work in place give a map of
their own, because a later layer would change a stage's map under the matching loss, and takes attention apart into its products, because
the fused form has no second derivative.

Segmentation. The decoder is that of the paper's UNet: transposed convolution, skip by concatenation, two conv-BN-ReLU.
segmentation-models-pytorch and MONAI's FlexibleUNet were weighed. The former is the better kept one and takes timm's encoders; MONAI's
has its own ResNets and EfficientNets. Neither gives the stages' maps and the rest of the network apart, which HGKT and DDBL work on, so
that their decoders could only be used from inside. The decoder here is forty lines and needs no package.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from vfmgl_lib.models.student_names import EXAMPLES, WITH_ENCODER, StudentError
from vfmgl_lib.models.students import Student, conv_block, load_student

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
RATES = ("drop_prob", "drop_rate")  # of timm's stochastic depth and heads


class TimmClassifier(Student):
    """A CNN of timm with its head.

    Args:
        name: timm's.
        classes: number of classes K.
        weights: "none", "hub" (timm's, downloaded) or a safetensors file in timm's layout, whose classifier is left out.
    Raises: StudentError: a network without stages, or with parts that take no part in the prediction.
    """

    net: Any  # a timm network; the types of its layers are not declared

    def __init__(self, name: str, classes: int, weights: str = "none"):
        super().__init__()
        self.name, self.classes = name, classes
        self.table = stage_table(name, False)
        self.net = _network(name, classes, weights)
        self.stage_channels = self.table.stage_channels

    @property
    def stages(self) -> dict[str, list[nn.Module]]:
        return self.table.modules_of(self.net)

    @property
    def last_layer(self) -> nn.Module:
        return self.net.get_classifier()

    @property
    def pooled_classifier(self) -> nn.Linear | None:
        classifier, channels = self.last_layer, self.table.channels[-1]
        if not isinstance(classifier, nn.Linear) or classifier.in_features != channels:
            return None
        # Asked of the network, with a map of noise: whatever else stands between map and logits would show.
        noise = torch.rand(2, channels, 3, 3, generator=torch.Generator().manual_seed(0)).to(classifier.weight)
        modes = {module: module.training for module in self.net.modules()}
        with torch.no_grad():
            found = self.net.eval().forward_head(noise)
        for module, training in modes.items():
            module.training = training
        return classifier if torch.allclose(found, classifier(noise.mean((2, 3))), rtol=1e-4, atol=1e-5) else None

    def anew(self) -> Student:
        return TimmClassifier(self.name, self.classes)

    def encode(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> the stages' maps (B, C_n, h_n, w_n); what their sides are is the network's."""
        return self.table.chosen(_maps(self.net, images, False))

    def features(self, maps: list[Tensor]) -> Tensor:
        """What the classifier reads: (B, D)."""
        return self.net.forward_head(maps[-1], pre_logits=True).flatten(1)

    def head_from_features(self, maps: list[Tensor], features: Tensor) -> Tensor:
        """Logits (B, K)."""
        # A classifier that is a convolution reads the features before they are flattened.
        return self.last_layer(features) if isinstance(self.last_layer, nn.Linear) else self.net.forward_head(maps[-1])


class TimmUNet(Student):
    """A UNet whose encoder is a CNN of timm without its head; stages are the encoder's, features its deepest map.

    At a 1/r of the image's side the decoder has r x width channels. Height and width must be multiples of `multiple`, mostly 32.

    Args:
        name: timm's name of the encoder.
        classes: number of classes K.
        width: channels of the decoder's last block, at full size (32 in the paper's UNet).
        weights: of the encoder: "none", "hub" or a safetensors file in timm's layout.
    """

    net: Any

    def __init__(self, name: str, classes: int, width: int = 32, weights: str = "none"):
        super().__init__()
        self.name, self.classes, self.width = name, classes, width
        self.table = stage_table(name, True)
        self.net = _without_head(_network(name, classes, weights))
        self.stage_channels = self.table.stage_channels
        # Of several maps of one size the last is the skip; the deepest is what is decoded.
        skips = dict(zip(self.table.strides, self.table.channels, strict=True))
        self.strides = sorted({1, *skips})  # of the decoder's levels, the last one the deepest map's
        self.multiple = self.strides[-1]
        self.ups, self.decoders = nn.ModuleList(), nn.ModuleList()
        channels = skips[self.multiple]
        for deep, shallow in pairwise(reversed(self.strides)):
            out = shallow * width
            self.ups.append(nn.ConvTranspose2d(channels, out, deep // shallow, stride=deep // shallow))
            self.decoders.append(conv_block(out + skips.get(shallow, 0), out))
            channels = out
        self.head = nn.Conv2d(width, classes, 1)

    @property
    def stages(self) -> dict[str, list[nn.Module]]:
        return self.table.modules_of(self.net)

    @property
    def last_layer(self) -> nn.Module:
        return self.head

    def anew(self) -> Student:
        return TimmUNet(self.name, self.classes, self.width)

    def encode(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W), H and W multiples of `multiple` -> the encoder's maps (B, C_n, H/r_n, W/r_n)."""
        if images.shape[-1] % self.multiple or images.shape[-2] % self.multiple:
            raise StudentError(f"height and width must be multiples of {self.multiple} for this encoder, got {tuple(images.shape)}")
        return self.table.chosen(_maps(self.net, images, True))

    def features(self, maps: list[Tensor]) -> Tensor:
        """The deepest map itself."""
        return maps[-1]

    def head_from_features(self, maps: list[Tensor], features: Tensor) -> Tensor:
        """The decoder: -> logits (B, K, H, W)."""
        skips = dict(zip(self.table.strides, maps, strict=True))
        hidden = features
        for up, decoder, stride in zip(self.ups, self.decoders, reversed(self.strides[:-1]), strict=True):
            hidden = up(hidden)
            hidden = decoder(torch.cat([hidden, skips[stride]], dim=1) if stride in skips else hidden)
        return self.head(hidden)


@dataclass(frozen=True)
class StageTable:
    """What a network says of its stages: which of its maps they end with, channels and stride of these, and the names of their modules."""

    taps: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    modules: tuple[tuple[str, ...], ...]

    @property
    def stage_channels(self) -> dict[str, int]:
        return {f"stage{number}": count for number, count in enumerate(self.channels, start=1)}

    def chosen(self, maps: list[Tensor]) -> list[Tensor]:
        return [maps[tap] for tap in self.taps]

    def modules_of(self, net: nn.Module) -> dict[str, list[nn.Module]]:
        parts = zip(self.stage_channels, self.modules, strict=True)
        return {stage: [net.get_submodule(name) for name in names] for stage, names in parts}


@functools.cache
def stage_table(name: str, encoder: bool) -> StageTable:
    """The stages of a timm network, from one pass without content: nothing is computed and no random number is drawn.

    Args:
        encoder: without the head, and without what stands between the last block and the head.
    Raises: StudentError: no stages, or a parameter that nothing depends on.
    """
    called = f"student {WITH_ENCODER * encoder}{name}"
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        net = _network(name, 2, "none")
        if not hasattr(net, "forward_intermediates"):
            raise StudentError(f"{called}: a {type(net).__name__} has no stages that can be tapped; take another CNN, {EXAMPLES}")
        net = (_without_head(net) if encoder else net).eval()
        config = getattr(net, "pretrained_cfg", None) or {}
        side = config.get("input_size", (3, 224, 224))[-1]
        if encoder and not config.get("fixed_input_size"):
            side = -(-side // 64) * 64  # strides are read off it
        maps = _maps(net, torch.zeros(1, 3, side, side), encoder)
        ends = [*maps] if encoder else [*maps, net.forward_head(maps[-1])]
    sides = [found.shape[-1] if found.dim() == 4 else 0 for found in maps]
    if len(set(sides)) < 2 or sides != sorted(sides, reverse=True) or 0 in sides or (not encoder and maps[-1].shape[1] != net.num_features):
        raise StudentError(
            f"{called}: has no stages, its maps at {side} px are {_shapes(maps)}; take a CNN that halves its maps, {EXAMPLES}"
        )
    if encoder and any(side % own for own in sides):
        raise StudentError(
            f"{called}: has maps that do not halve, at {side} px they are {_shapes(maps)}, so that a decoder's do not fit them; take a CNN "
            f"with padded convolutions, {EXAMPLES}"
        )
    first = _first_user(net, ends)
    if unused := [parameter for parameter, _ in net.named_parameters() if parameter not in first]:
        raise StudentError(
            f"{called}: {len(unused)} of its parameters, e.g. {unused[0]}, take no part in the prediction; take another CNN, {EXAMPLES}"
        )
    owned = _owners(net, "", first, called)
    taps: list[int] = []
    for place in range(len(maps)):  # a map without parameters of its own, such as VGG's last pooling, is the end of the stage before
        taps[len(taps) - (bool(taps) and place not in owned.values()) :] = [place]
    modules = [[module for module, stage in owned.items() if before < stage <= tap] for before, tap in pairwise([-1, *taps])]
    channels, strides = (
        tuple(values[tap] for tap in taps) for values in ([found.shape[1] for found in maps], [side // own for own in sides])
    )
    return StageTable(tuple(taps), channels, strides, tuple(map(tuple, modules)))


def settled(net: nn.Module) -> nn.Module:
    """The network without randomness, without layers that work in place and without fused attention; see above."""
    for module in net.modules():
        if isinstance(module, DROPOUT):
            module.p = 0.0
        for rate in RATES:
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
        for switch in ("inplace", "fused_attn"):
            if getattr(module, switch, False) is True:
                setattr(module, switch, False)
    return net


def _network(name: str, classes: int, weights: str) -> Any:
    if weights == "hub" and not timm.models.is_model_pretrained(name):
        raise StudentError(f"student {name}, weights 'hub': timm has none for it; use 'none' or a safetensors file")
    net: Any = settled(timm.create_model(name, pretrained=weights == "hub", num_classes=classes))
    if weights not in ("none", "hub"):
        classifier = net.get_classifier()
        place = next(module for module, found in net.named_modules() if found is classifier)
        load_student(net, Path(weights), without=tuple(f"{place}.{part}" for part in classifier.state_dict()))
    return net


def _without_head(net: Any) -> Any:
    net.prune_intermediate_layers(list(range(len(net.feature_info))), prune_norm=True, prune_head=True)
    return net


def _maps(net: Any, images: Tensor, encoder: bool) -> list[Tensor]:
    if encoder:
        return list(net.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True))
    final, maps = net.forward_intermediates(images, output_fmt="NCHW")
    return [*maps[:-1], final]


def _shapes(maps: list[Tensor]) -> str:
    shapes = [" x ".join(map(str, found.shape[1:])) for found in maps]
    return ", ".join(shapes if len(shapes) < 6 else [*shapes[:3], "...", shapes[-1]])


def _first_user(net: nn.Module, ends: list[Tensor]) -> dict[str, int]:
    """Parameter -> the first of these tensors that depends on it; parameters that none depends on are left out."""
    names = {get_gradient_edge(parameter).node: name for name, parameter in net.named_parameters()}
    found: dict[str, int] = {}
    seen: set[Node] = set()
    for place, end in enumerate(ends):
        waiting = [end.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in names:
                found[names[node]] = place
            waiting += [other for other, _ in node.next_functions]
    return found


def _owners(net: nn.Module, place: str, first: dict[str, int], called: str) -> dict[str, int]:
    """Module -> the stage that all of its parameters belong to, the largest such modules; dropped are modules without parameters."""
    module = net.get_submodule(place)
    stages = {first[f"{place}.{name}" if place else name] for name, _ in module.named_parameters()}
    if len(stages) < 2:
        return dict.fromkeys([place], stages.pop()) if stages else {}
    if own := [name for name, _ in module.named_parameters(recurse=False)]:
        raise StudentError(f"{called}: {own[0]} of {place or 'the network'} belongs to no single stage, which could not be frozen alone")
    found: dict[str, int] = {}
    for child, _ in module.named_children():
        found |= _owners(net, f"{place}.{child}" if place else child, first, called)
    return found
