"""Students: the paper's ResNet18 for classification and UNet for segmentation, and the interface of every student.

`forward(x) -> logits`, `encode(x) -> [stage maps]`, `head_from_stages(stages) -> logits`, `forward_stages(x) -> (logits, [stage maps])`,
`forward_features(x) -> (logits, features)`, `embed(x) -> (B, D)`, and `stages`, the ordered table stage name -> modules (what freezing
a stage freezes). Features are what the classifier reads (ResNet18) or the bottleneck's map (UNet).

`models.student_names` says how a student is named; `models.timm_students` has those out of timm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vfmgl_lib.models.batch_norm import use_batch_statistics
from vfmgl_lib.models.student_names import CLASSIFIER, SEGMENTER, StudentError, check_student_name, network_name, segments


class Student(nn.Module):
    """What all students share; a student adds `stage_channels`, `stages`, `encode`, `features` and `head_from_features`."""

    stage_channels: dict[str, int]
    encode: Callable[[Tensor], list[Tensor]]
    features: Callable[[list[Tensor]], Tensor]
    head_from_features: Callable[[list[Tensor], Tensor], Tensor]

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> logits (B, K) or (B, K, H, W)."""
        return self.head_from_stages(self.encode(images))

    def head_from_stages(self, maps: list[Tensor]) -> Tensor:
        """Everything behind the stages: stage maps -> logits (B, K) or (B, K, H, W)."""
        return self.head_from_features(maps, self.features(maps))

    def forward_stages(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """images (B, 3, H, W) in [0, 1] -> logits and the stage maps, in the order of `stages`."""
        maps = self.encode(images)
        return self.head_from_stages(maps), maps

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) in [0, 1] -> logits and features, in one pass."""
        maps = self.encode(images)
        features = self.features(maps)
        return self.head_from_features(maps, features), features

    def embed(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> (B, D), the features' mean over places."""
        features = self.features(self.encode(images))
        return features.flatten(2).mean(2) if features.dim() == 4 else features

    @property
    def stages(self) -> dict[str, list[nn.Module]]:
        """The ordered table stage name -> modules."""
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Module:
        """The layer that gives the logits."""
        raise NotImplementedError

    @property
    def pooled_classifier(self) -> nn.Linear | None:
        """The layer that reads the mean of the last stage's map and gives the logits, for a CAM; None: something else gives them."""
        return None

    def anew(self) -> Student:
        """Another student of this kind, with weights as at the start of a training from nothing, drawn with torch's random numbers."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it starts")

    def infer(self, batch: dict[str, Tensor], image_hashes: list[str], device: torch.device) -> Tensor:
        """Logits of a batch as `data.loading` gives it; a model that reads something else than the image overrides this.

        Args:
            image_hashes: B times the SHA-256 of the image file.
        """
        return self(batch["image"].to(device))


class ResNet18(Student):
    """ResNet18 (He et al. 2016; timm `resnet18`) with its stage maps.

    Stages at 224 x 224: stem (first convolution, before its BN) 64@112, layer1 64@56, layer2 128@28, layer3 256@14, layer4 512@7.

    Args:
        classes: number of classes K.
        width: channels of layer1 (64 in the paper); layer2-4 have 2, 4 and 8 times as many, the stem always 64.
        weights: "none", "hub" (timm's ImageNet weights, downloaded) or a safetensors file in timm's layout without the classifier.
    """

    net: Any  # timm's ResNet; the types of its layers are not declared

    def __init__(self, classes: int, width: int = 64, weights: str = "none"):
        super().__init__()
        import timm

        channels = tuple(width * factor for factor in (1, 2, 4, 8))
        self.net = timm.create_model("resnet18", pretrained=weights == "hub", num_classes=classes, channels=channels)
        if weights not in ("none", "hub"):
            load_student(self.net, Path(weights), without=("fc.weight", "fc.bias"))
        self.stage_channels = {"stem": 64, **{f"layer{i + 1}": c for i, c in enumerate(channels)}}

    @property
    def stages(self) -> dict[str, list[nn.Module]]:
        net = self.net
        return {"stem": [net.conv1, net.bn1], **{f"layer{i}": [getattr(net, f"layer{i}")] for i in range(1, 5)}}

    @property
    def last_layer(self) -> nn.Module:
        return self.net.fc

    @property
    def pooled_classifier(self) -> nn.Linear | None:
        return self.net.fc

    def encode(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> the five stage maps (B, C_n, H/2^k, W/2^k), k = 1...5."""
        net = self.net
        maps = [net.conv1(images)]
        hidden = net.maxpool(net.act1(net.bn1(maps[0])))
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            hidden = layer(hidden)
            maps.append(hidden)
        return maps

    def features(self, maps: list[Tensor]) -> Tensor:
        """Global average pooling of the last stage map: (B, C_5, h, w) -> penultimate features (B, C_5)."""
        return self.net.global_pool(maps[-1])

    def head_from_features(self, maps: list[Tensor], features: Tensor) -> Tensor:
        """The classifier: (B, C_5) -> logits (B, K)."""
        return self.net.fc(features)


class UNet(Student):
    """UNet (Ronneberger et al. 2015): four levels, two conv-BN-ReLU a block, transposed convolutions up, skips by concatenation.

    Stages: the four encoder blocks, encoder1 (width channels, full size) ... encoder4 (8 x width, 1/8). 7.76 M parameters at width 32.

    Args:
        classes: number of classes K.
        width: channels of the first block (32 in the paper).
        weights: "none" or a safetensors file of this very model.
    """

    def __init__(self, classes: int, width: int = 32, weights: str = "none"):
        super().__init__()
        channels = [width * factor for factor in (1, 2, 4, 8)]
        self.encoders = nn.ModuleList(conv_block(a, b) for a, b in zip([3, *channels], channels, strict=False))
        self.bottleneck = conv_block(channels[-1], 2 * channels[-1])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in reversed(channels))
        self.decoders = nn.ModuleList(conv_block(2 * c, c) for c in reversed(channels))
        self.head = nn.Conv2d(width, classes, 1)
        self.stage_channels = {f"encoder{i + 1}": c for i, c in enumerate(channels)}
        if weights == "hub":
            raise ValueError("student weights 'hub': there are none for the UNet; use 'none' or a safetensors file")
        if weights != "none":
            load_student(self, Path(weights))

    @property
    def stages(self) -> dict[str, list[nn.Module]]:
        return {f"encoder{i + 1}": [block] for i, block in enumerate(self.encoders)}

    @property
    def last_layer(self) -> nn.Module:
        return self.head

    def encode(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W), H and W multiples of 16 -> the four encoder maps (B, width * 2^n, H/2^n, W/2^n), n = 0...3."""
        if images.shape[-1] % 16 or images.shape[-2] % 16:
            raise ValueError(f"the UNet halves its input four times: height and width must be multiples of 16, got {tuple(images.shape)}")
        hidden = images
        maps: list[Tensor] = []
        for encoder in self.encoders:
            hidden = encoder(hidden if not maps else F.max_pool2d(hidden, 2))
            maps.append(hidden)
        return maps

    def features(self, maps: list[Tensor]) -> Tensor:
        """The bottleneck on the last encoder map: -> (B, 16 * width, H/16, W/16)."""
        return self.bottleneck(F.max_pool2d(maps[-1], 2))

    def head_from_features(self, maps: list[Tensor], features: Tensor) -> Tensor:
        """The decoder on the bottleneck's map and the four encoder maps: -> logits (B, K, H, W)."""
        hidden = features
        for up, decoder, skip in zip(self.ups, self.decoders, reversed(maps), strict=True):
            hidden = decoder(torch.cat([up(hidden), skip], dim=1))
        return self.head(hidden)


STUDENTS = {CLASSIFIER: ResNet18, SEGMENTER: UNet}


def build_student(name: str, classes: int, width: int, weights: str = "none", *, batch_statistics: bool = False) -> Student:
    """A student by its name (`models.student_names`).

    Args:
        classes: number of classes K.
        width: of the paper's students, and of the decoder of unet:NAME; not read for a CNN of timm.
        weights: "none", "hub" or a safetensors file.
        batch_statistics: every batch is normalised by itself, in evaluation too.
    Raises: StudentError: a name that timm does not know, a network without stages.
    """
    student = STUDENTS[name](classes, width, weights) if name in STUDENTS else _timm_student(name, classes, width, weights)
    if batch_statistics:
        use_batch_statistics(student)
    return student


def _timm_student(name: str, classes: int, width: int, weights: str) -> Student:
    from vfmgl_lib.models import timm_students  # here, because it builds on this file

    check_student_name(name)
    if segments(name):
        return timm_students.TimmUNet(network_name(name), classes, width, weights)
    return timm_students.TimmClassifier(network_name(name), classes, weights)


def part_names(student: Student, part: str) -> set[str]:
    """Names in the student's state of one part.

    Args:
        part: "batch_norm": affine parameters and statistics of every layer that normalises. FedBN is defined for batch normalisation, which
            is all there is in the paper's students; of a student with LayerNorm or GroupNorm the parameters of these are the part, by
            the same reason: they carry the scale and shift of a centre's features. "last_layer". "": none.
    Raises: ValueError: another part. StudentError: a student that has nothing of it, so that a method that keeps it would be FedAvg.
    """
    if part not in ("", "batch_norm", "last_layer"):
        raise ValueError(f"part of a student must be batch_norm, last_layer or '', got {part!r}")
    if not part:
        return set()
    layers = normalisation_layers()
    wanted = {"batch_norm": lambda module: isinstance(module, layers), "last_layer": lambda module: module is student.last_layer}
    names = {f"{name}.{key}" for name, module in student.named_modules() if wanted[part](module) for key in module.state_dict()}
    if not names:
        raise StudentError(
            f"the student has no layer of the part {part!r}: nothing would stay at its centre; take another method or student"
        )
    return names


def normalisation_layers() -> tuple[type[nn.Module], ...]:
    """What a method that keeps normalisation at home keeps (`part_names`); timm's own layers are of these classes or stand beside them."""
    from timm.layers import RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d
    from timm.layers.grn import GlobalResponseNorm

    batches = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    others = (nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm, nn.RMSNorm)
    return (*batches, *others, RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d, GlobalResponseNorm)


def set_training_mode(student: Student, frozen: tuple[str, ...] = ()) -> None:
    """Train mode with the named stages frozen: their parameters take no gradient and they work as in evaluation, statistics standing still.

    Freezing is not cumulative: every other stage becomes free.
    Raises: ValueError: if a stage is not one of the student's.
    """
    unknown = sorted(set(frozen) - set(student.stages))
    if unknown:
        raise ValueError(f"stages {unknown} are not among the student's {list(student.stages)}")
    student.train().requires_grad_(True)
    for stage in frozen:
        for module in student.stages[stage]:
            module.eval().requires_grad_(False)


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (inputs, outputs):
        layers += [nn.Conv2d(source, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def load_student(module: nn.Module, path: Path, without: tuple[str, ...] = ()) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"student weights {path}: no such file (give 'none', 'hub' or a safetensors file)")
    state = {name: tensor for name, tensor in load_file(path).items() if name not in without}
    own = module.state_dict()
    wrong = [name for name in own if name not in without and (name not in state or state[name].shape != own[name].shape)]
    wrong += [name for name in state if name not in own]
    if wrong:
        raise ValueError(
            f"student weights {path} do not fit the model: {len(wrong)} tensors missing, additional or of another shape, e.g. {wrong[:3]}"
        )
    module.load_state_dict(state, strict=False)
