"""What a ViT is pre-trained for. Both objectives see the same images; which of them serves better is measured (results/pocket_teacher).

`Parsing`: supervised. Every patch tells what of it is covered by each kind of object, in 4 x 4 cells, and where edges run; the mean of the
patches tells the fractal's iterated function system, the ground's spectrum and, of phantoms, the class.
`SelfDistillation`: DINO (Caron et al. 2021) with iBOT's masked patches (Zhou et al. 2022): two crops and four small ones, a teacher that is
the moving average of the student; no labels.

An objective is a module that holds the trunk as `trunk`; `forward(batch, random, progress) -> loss`, `after_step(progress)`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vfmgl_lib.pretrain.formulas import KINDS, SYSTEMS, Scenes
from vfmgl_lib.pretrain.phantom_bank import LAYOUTS, NO_LABEL

CELLS = 4  # along a side of a patch
SIDES = (64, 96, 128)  # of the images; a study's teacher may have any grid


@dataclass
class Batch:
    """Scenes and phantoms of one step; phantoms as in `phantom_bank`, images (P, 3, S, S) in [0, 1], on the device."""

    scenes: Scenes
    phantoms: Tensor
    mask: Tensor  # (P, S, S) bool
    layout: Tensor  # (P,) int64
    label: Tensor  # (P,) int64

    @property
    def images(self) -> Tensor:
        return torch.cat([self.scenes.images, self.phantoms])


def tokens_of(trunk: VisionTransformer, images: Tensor, keep: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
    """Tokens (B, 1 + P, C) after the final norm; with `keep` (B, P) False, a patch's embedding is replaced by `mask_token`."""
    embedded = trunk.patch_embed((images - 0.5) / 0.5)
    if keep is not None:
        embedded = torch.where(keep.view(*embedded.shape[:-1], 1), embedded, mask_token.to(embedded.dtype))
    tokens = trunk.norm_pre(trunk._pos_embed(embedded))
    for block in trunk.blocks:
        tokens = block(tokens)
    return trunk.norm(tokens)


class Parsing(nn.Module):
    """See the module's docstring."""

    def __init__(self, trunk: VisionTransformer):
        super().__init__()
        self.trunk, width = trunk, trunk.embed_dim
        self.kinds = len(KINDS) - 1 + 1  # objects but the ground, and edges
        self.dense = nn.Linear(width, CELLS**2 * (self.kinds + len(LAYOUTS)))
        self.system, self.spectrum, self.label = nn.Linear(width, SYSTEMS), nn.Linear(width, 3), nn.Linear(width, len(LAYOUTS))

    def forward(self, batch: Batch, random: torch.Generator, progress: float) -> Tensor:
        side = SIDES[random.initial_seed() % len(SIDES)]  # by the step's seed: known without asking the device
        images = F.interpolate(batch.images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        patch, count = self.trunk.patch_embed.patch_size[0], len(batch.scenes.images)
        tokens = tokens_of(self.trunk, images)[:, 1:].float()
        mean = tokens.mean(1)
        grid = side // patch
        dense = self.dense(tokens).view(len(images), grid, grid, CELLS, CELLS, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        scenes, phantoms = dense[:count, ..., : self.kinds], dense[count:, ..., self.kinds :]

        cells = grid * CELLS
        kinds = F.one_hot(batch.scenes.kinds, len(KINDS))[..., 1:].permute(0, 3, 1, 2).float()
        target = torch.cat([kinds, batch.scenes.edges[:, None].float()], dim=1)
        target = F.adaptive_avg_pool2d(target, cells).permute(0, 2, 3, 1)
        loss = F.binary_cross_entropy_with_logits(scenes.reshape(target.shape), target)

        mask = F.adaptive_avg_pool2d(batch.mask[:, None].float(), cells)[:, 0]
        own = phantoms.reshape(len(mask), cells, cells, -1).gather(-1, batch.layout[:, None, None, None].expand(-1, cells, cells, 1))
        loss = loss + F.binary_cross_entropy_with_logits(own[..., 0], mask)

        # Means over those that have the label; masks instead of indices, so that nothing waits for a GPU.
        has = (batch.scenes.system >= 0).float()
        system = F.cross_entropy(self.system(mean[:count]), batch.scenes.system.clamp_min(0), reduction="none")
        loss = loss + 0.1 * (system * has).sum() / has.sum().clamp_min(1)
        loss = loss + 0.3 * F.smooth_l1_loss(self.spectrum(mean[:count]), batch.scenes.spectrum)
        labelled = (batch.label != NO_LABEL).float()
        logit = self.label(mean[count:]).gather(1, batch.layout[:, None])[:, 0]
        classed = F.binary_cross_entropy_with_logits(logit, batch.label.clamp_min(0).float(), reduction="none")
        return loss + (classed * labelled).sum() / labelled.sum().clamp_min(1)

    def after_step(self, progress: float) -> None:
        """Nothing: there is no second network."""


class SelfDistillation(nn.Module):
    """See the module's docstring."""

    PROTOTYPES, SMALL_CROPS, MASKED = 2048, 4, 0.3
    TEMPERATURE, TEACHER_TEMPERATURE = 0.1, (0.04, 0.07)
    MOMENTUM, CENTER_MOMENTUM = 0.994, 0.9

    def __init__(self, trunk: VisionTransformer):
        super().__init__()
        self.trunk, width = trunk, trunk.embed_dim
        self.head = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 128))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(self.PROTOTYPES, 128), dim=1))
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.slow = copy.deepcopy(nn.ModuleDict({"trunk": trunk, "head": self.head})).requires_grad_(False)
        self.register_buffer("slow_prototypes", self.prototypes.detach().clone())
        self.register_buffer("center", torch.zeros(2, self.PROTOTYPES))  # of whole images, of patches

    def forward(self, batch: Batch, random: torch.Generator, progress: float) -> Tensor:
        images = batch.images
        count, device = len(images), images.device
        first, second = (crops(images, 128, (0.4, 1.0), random) for _ in range(2))
        small = torch.cat([crops(images, 64, (0.1, 0.4), random) for _ in range(self.SMALL_CROPS)])
        large = torch.cat([first, second])
        patches = (128 // self.trunk.patch_embed.patch_size[0]) ** 2
        keep = torch.rand(2 * count, patches, generator=random, device=device) >= self.MASKED
        low, high = self.TEACHER_TEMPERATURE
        sharp = low + (high - low) * min(1.0, progress / 0.3)
        with torch.no_grad():
            seen = self._scores(tokens_of(self.slow["trunk"], large), self.slow["head"], self.slow_prototypes)
            wanted = torch.cat([seen[:, :1] - self.center[0], seen[:, 1:] - self.center[1]], dim=1).div(sharp).softmax(-1)
            means = torch.stack([seen[:, 0].mean(0), seen[:, 1:].mean((0, 1))])
            self.center.lerp_(means, 1 - self.CENTER_MOMENTUM)
        told = self._scores(tokens_of(self.trunk, large, keep, self.mask_token), self.head, self.prototypes)
        told = (told / self.TEMPERATURE).log_softmax(-1)
        of_small = self._scores(tokens_of(self.trunk, small)[:, :1], self.head, self.prototypes)
        of_small = (of_small[:, 0] / self.TEMPERATURE).log_softmax(-1)

        halves = wanted[:count, 0], wanted[count:, 0]
        whole = -(halves[1] * told[:count, 0]).sum(-1).mean() - (halves[0] * told[count:, 0]).sum(-1).mean()
        both = (halves[0] + halves[1]).repeat(self.SMALL_CROPS, 1)
        crossed = (whole - (both * of_small).sum(-1).mean() * self.SMALL_CROPS) / (2 + 2 * self.SMALL_CROPS)
        hidden = (~keep).float()
        masked = -((wanted[:, 1:] * told[:, 1:]).sum(-1) * hidden).sum() / hidden.sum().clamp_min(1)
        return crossed + masked

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """The slow network follows; the prototypes stay on the sphere."""
        momentum = 1 - (1 - self.MOMENTUM) * (1 + math.cos(math.pi * progress)) / 2
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        quick = [*self.trunk.parameters(), *self.head.parameters(), self.prototypes]
        slow = [*self.slow["trunk"].parameters(), *self.slow["head"].parameters(), self.slow_prototypes]
        torch._foreach_lerp_(slow, [p.detach() for p in quick], 1 - momentum)

    def _scores(self, tokens: Tensor, head: nn.Module, prototypes: Tensor) -> Tensor:
        return (F.normalize(head(tokens).float(), dim=-1) @ prototypes.T).float()


def crops(images: Tensor, side: int, share: tuple[float, float], random: torch.Generator) -> Tensor:
    """A random square of each image, of this share of its area, turned over at random and recoloured: (B, 3, side, side)."""
    count, device = len(images), images.device

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=random, device=device)

    reach = uniform(count, low=share[0], high=share[1]).sqrt()
    place = uniform(count, 2, low=-1.0, high=1.0) * (1 - reach)[:, None]
    flips = torch.where(uniform(count, 2) < 0.5, -1.0, 1.0) * reach[:, None]
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = flips[:, 0], flips[:, 1], place
    # Twice as fine as needed and averaged: a coarse crop must not alias.
    grid = F.affine_grid(theta, [count, 3, 2 * side, 2 * side], align_corners=False)
    cut = F.avg_pool2d(F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False), 2)
    mean = cut.mean((-2, -1), keepdim=True)
    cut = (cut - mean) * uniform(count, 1, 1, 1, low=0.6, high=1.4) + mean * uniform(count, 3, 1, 1, low=0.75, high=1.25)
    grey = cut.mean(1, keepdim=True)
    return torch.where(uniform(count, 1, 1, 1) < 0.2, grey.expand_as(cut), cut).clamp(0, 1)


OBJECTIVES: dict[str, type[Parsing] | type[SelfDistillation]] = {"parsing": Parsing, "self_distillation": SelfDistillation}
