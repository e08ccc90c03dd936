"""What the pocket teacher is trained for: to say what it sees, patch by patch.

Every patch tells how much of each of its 4 x 4 cells is covered by each kind of object, and where edges run; of phantoms, by the layout's
structure. The mean of the patches tells the fractal's iterated function system, the ground's spectrum and, of phantoms, the class.

Self-distillation (DINO with iBOT's masked patches) was tried beside it and served worse: results/pocket_teacher/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vfmgl_lib.tools.pretrain.formulas import KINDS, SYSTEMS, Scenes
from vfmgl_lib.tools.pretrain.phantom_bank import LAYOUTS, NO_LABEL

CELLS = 4  # along a side of a patch
MEAN = STD = 0.5
SIDES = (64, 96, 128)  # of the images; a study's teacher may have any grid


@dataclass
class Batch:
    """Scenes and phantoms of one step; phantoms as in `phantom_bank`, images (P, 3, S, S) in [0, 1], on the device."""

    scenes: Scenes
    phantoms: Tensor
    mask: Tensor  # (P, S, S) bool
    layout: Tensor  # (P,) int64
    label: Tensor  # (P,) int64


class Parsing(nn.Module):
    """The ViT `trunk` with a linear head for every question."""

    def __init__(self, trunk: VisionTransformer):
        super().__init__()
        self.trunk, width = trunk, trunk.embed_dim
        self.kinds = len(KINDS)  # the objects, without the ground but with edges
        self.dense = nn.Linear(width, CELLS**2 * (self.kinds + len(LAYOUTS)))
        self.system, self.spectrum, self.label = nn.Linear(width, SYSTEMS), nn.Linear(width, 3), nn.Linear(width, len(LAYOUTS))

    def forward(self, batch: Batch, side: int) -> Tensor:
        """The loss of a batch whose images are shown at this side."""
        images = torch.cat([batch.scenes.images, batch.phantoms])
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        patch, count = self.trunk.patch_embed.patch_size[0], len(batch.scenes.images)
        tokens = self.trunk.forward_features((images - MEAN) / STD)[:, 1:].float()
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

        # Means over those that have the label, by masks: their number is not asked of a GPU.
        has = (batch.scenes.system >= 0).float()
        system = F.cross_entropy(self.system(mean[:count]), batch.scenes.system.clamp_min(0), reduction="none")
        loss = loss + 0.1 * (system * has).sum() / has.sum().clamp_min(1)
        loss = loss + 0.3 * F.smooth_l1_loss(self.spectrum(mean[:count]), batch.scenes.spectrum)
        labelled = (batch.label != NO_LABEL).float()
        logit = self.label(mean[count:]).gather(1, batch.layout[:, None])[:, 0]
        classed = F.binary_cross_entropy_with_logits(logit, batch.label.clamp_min(0).float(), reduction="none")
        return loss + 0.3 * (classed * labelled).sum() / labelled.sum().clamp_min(1)
