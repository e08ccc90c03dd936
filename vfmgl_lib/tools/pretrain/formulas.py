"""Images drawn from formulas, for pre-training without a single photograph, and what is known about each pixel of them.

A scene is a textured ground with up to `OBJECTS` objects of one to three families (a family has its own kind of outline, size, colour and
texture, as a population of cells has), over every third scene a fractal, and a camera: uneven light, blur, noise, gamma, inversion.

- textures: white noise filtered to a power law, with a direction or a band of its own (band-limited and 1/f fields)
- outlines: ellipses, rings, regular polygons, and "visual atoms", circles with sinusoidal waves (Takashima et al. 2023)
- fractals: iterated function systems of two to five affine maps, drawn by the chaos game (FractalDB; Kataoka et al. 2020)

Everything is drawn on `device` for a whole batch at once and depends on the seed alone. Coordinates span [-1, 1], colours [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("ground", "ellipse", "ring", "polygon", "atom", "fractal")
SYSTEMS = 200  # iterated function systems, the same in every run
OBJECTS, FAMILIES, TEXTURES, MAPS = 28, 3, 4, 5
POINTS, ITERATIONS = 192, 40  # of the chaos game: points at once, and iterations after the first ten
_GROUND, _ELLIPSE, _RING, _POLYGON, _ATOM, _FRACTAL = range(len(KINDS))


@dataclass
class Scenes:
    """A batch of B scenes.

    Attributes:
        images: (B, 3, S, S) float32 in [0, 1].
        kinds: (B, S, S) int64, index in KINDS.
        edges: (B, S, S) bool, pixels beside another object or the ground.
        system: (B,) int64, the fractal's iterated function system; -1 without one.
        spectrum: (B, 3) float32, the ground's texture: exponent of its power law scaled to about [-1, 1] (of the third of the textures
            that have a band instead, a number without meaning), and cos and sin of twice its direction times how directed it is.
    """

    images: Tensor
    kinds: Tensor
    edges: Tensor
    system: Tensor
    spectrum: Tensor


class Painter:
    """Draws scenes of one side on one device; `draw(count, seed)`."""

    def __init__(self, side: int, device: torch.device):
        self.side, self.device = side, device
        axis = (torch.arange(side, device=device) + 0.5) * (2 / side) - 1
        self.x, self.y = axis[None, :].expand(side, side), axis[:, None].expand(side, side)
        self.fx, self.fy = (
            torch.fft.rfftfreq(side, 1 / side, device=device)[None, :],
            torch.fft.fftfreq(side, 1 / side, device=device)[:, None],
        )
        self.maps, self.chances = (t.to(device) for t in _systems())

    def draw(self, count: int, seed: int) -> Scenes:
        """`count` scenes, the same for the same seed, count, side and kind of device."""
        self.random = torch.Generator(self.device).manual_seed(seed)
        textures, spectrum = self._textures(count)
        canvas = self._coloured(textures[:, 0], count)
        kinds = torch.full((count, self.side, self.side), _GROUND, device=self.device)
        owner = torch.zeros_like(kinds)
        canvas, kinds, owner = self._objects(canvas, kinds, owner, textures, count)
        canvas, kinds, owner, system = self._fractals(canvas, kinds, owner, textures, count)
        edges = torch.zeros_like(kinds, dtype=torch.bool)
        edges[:, 1:] |= owner[:, 1:] != owner[:, :-1]
        edges[:, :, 1:] |= owner[:, :, 1:] != owner[:, :, :-1]
        return Scenes(self._photograph(canvas, count), kinds, edges, system, spectrum)

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.random, device=self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, device=self.device)

    def _whole(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.random, device=self.device)

    def _textures(self, count: int) -> tuple[Tensor, Tensor]:
        """(B, TEXTURES, S, S) fields of mean about 0 and standard deviation about 1, and the first one's (B, 3) spectrum."""
        shape = (count, TEXTURES, 1, 1)
        exponent, angle = self._uniform(*shape, low=0.6, high=3.2), self._uniform(*shape, high=math.pi)
        stretch = torch.exp(self._uniform(*shape, high=1.6) * (self._uniform(*shape) < 0.5))
        along = self.fx * torch.cos(angle) + self.fy * torch.sin(angle)
        across = self.fy * torch.cos(angle) - self.fx * torch.sin(angle)
        frequency = torch.hypot(along * stretch, across / stretch).clamp_min(0.7)
        middle = torch.exp(self._uniform(*shape, low=1.0, high=math.log(self.side / 4)))
        band = torch.exp(-(((frequency - middle) / (0.25 * middle)) ** 2))
        amplitude = torch.where(self._uniform(*shape) < 0.35, band, frequency ** (-exponent))
        amplitude = amplitude * (self.fx**2 + self.fy**2 > 0)
        noise = torch.fft.rfft2(self._normal(count, TEXTURES, self.side, self.side))
        field = torch.fft.irfft2(noise * amplitude, s=(self.side, self.side))
        field = field / field.std((-2, -1), keepdim=True).clamp_min(1e-6)
        # A third are ridged, a third wavy, as fibres, veins and membranes are.
        form = self._uniform(*shape)
        field = torch.where(form < 0.3, 1.5 * field.abs() - 1.2, torch.where(form < 0.6, torch.sin(2 * field) * 1.4, field))
        directed = torch.log(stretch) / 1.6
        spectrum = torch.cat([(exponent - 1.9) / 1.3, directed * torch.cos(2 * angle), directed * torch.sin(2 * angle)], dim=2)
        return field, spectrum[:, 0, :, 0]

    def _colours(self, count: int) -> Tensor:
        """(B, 3, 1, 1): a colour each, in every third scene a grey."""
        colours = self._uniform(count, 3, 1, 1, low=0.05, high=0.98)
        return torch.where(self.grey, colours.mean(1, keepdim=True).expand_as(colours), colours)

    def _coloured(self, field: Tensor, count: int) -> Tensor:
        """(B, S, S) field as a ramp between two colours, (B, 3, S, S)."""
        self.grey = self._uniform(count, 1, 1, 1) < 0.33
        first, second = self._colours(count), self._colours(count)
        share = torch.sigmoid(self._uniform(count, 1, 1, 1, low=0.3, high=2.5) * field[:, None])
        return first + (second - first) * share

    def _objects(self, canvas, kinds, owner, textures, count):
        # Most scenes have few objects. Those with the most come first, so that the scenes with an i-th object are the first ones.
        number = torch.exp(self._uniform(count, high=math.log(OBJECTS + 0.99))).long().sort(descending=True).values
        drawn = (number[:, None] > torch.arange(OBJECTS, device=self.device)).sum(0).tolist()
        families = self._whole(1, FAMILIES + 1, count)
        shape = (count, FAMILIES)
        kind = self._whole(_ELLIPSE, _FRACTAL, *shape)
        size = torch.exp(self._uniform(*shape, low=math.log(0.05), high=math.log(0.42))) * (number[:, None] / 4).clamp_min(1) ** -0.25
        stretch = torch.exp(self._uniform(*shape, high=0.7))
        corners = self._whole(3, 8, *shape)
        waves = self._normal(count, FAMILIES, 5) * 0.16 * self._uniform(count, FAMILIES, 1)
        colours = torch.stack([self._colours(count) for _ in range(FAMILIES)], dim=1)
        rim, grain = self._uniform(*shape, low=-0.5, high=0.5), self._uniform(*shape, high=0.25)
        opacity, softness = self._uniform(*shape, low=0.55, high=1.0), self._uniform(count, 1, 1, low=1.0, high=3.0) / self.side
        for index, some in enumerate(drawn):
            if not some:
                break
            family = (self._uniform(some) * families[:some]).long()
            rows = torch.arange(some, device=self.device)
            its, stretched, grained, rimmed, covering = (t[rows, family][:, None, None] for t in (kind, stretch, grain, rim, opacity))
            radius = (size[rows, family] * torch.exp(0.2 * self._normal(some)))[:, None, None]
            place = self._uniform(2, some, 1, 1, low=-1.05, high=1.05)
            turn, phase = self._uniform(some, 1, 1, high=2 * math.pi), self._uniform(5, some, 1, 1, high=2 * math.pi)
            x, y = self.x - place[0], self.y - place[1]
            u = (x * torch.cos(turn) + y * torch.sin(turn)) / stretched.sqrt()
            v = (y * torch.cos(turn) - x * torch.sin(turn)) * stretched.sqrt()
            level, theta = torch.hypot(u, v) / radius, torch.atan2(v, u)
            sector = (2 * math.pi / corners[rows, family])[:, None, None]
            polygon = torch.cos(sector / 2) / torch.cos(torch.remainder(theta, sector) - sector / 2)
            heights = waves[rows, family].T[..., None, None]
            wavy = 1 + sum(heights[j] * torch.cos((j + 2) * theta + phase[j]) for j in range(5))
            outline = torch.where(its == _POLYGON, polygon, torch.where(its == _ATOM, wavy, torch.ones_like(wavy)))
            depth = level / outline - 1
            depth = torch.where(its == _RING, (depth + 0.25).abs() - 0.25, depth)  # negative inside, in radii
            inside = (0.5 - depth * radius / softness[:some]).clamp(0, 1)
            shade = grained * textures[rows, 1 + family % (TEXTURES - 1)] + rimmed * torch.exp(-((depth / 0.18) ** 2))
            colour = (colours[rows, family] + shade[:, None]).clamp(0, 1)
            canvas[:some] += (inside * covering)[:, None] * (colour - canvas[:some])
            covered = inside > 0.5
            kinds[:some] = torch.where(covered, its, kinds[:some])
            owner[:some] = torch.where(covered, index + 1, owner[:some])
        return canvas, kinds, owner

    def _fractals(self, canvas, kinds, owner, textures, count):
        has = self._uniform(count) < 0.34
        system = self._whole(0, SYSTEMS, count)
        maps, chances = self.maps[system], self.chances[system]
        points = self._uniform(count, POINTS, 2, low=-0.5, high=0.5)
        visited = []
        for iteration in range(ITERATIONS + 10):
            choice = torch.searchsorted(chances, self._uniform(count, POINTS)).clamp_max(MAPS - 1)
            chosen = maps.gather(1, choice[..., None].expand(-1, -1, 6))
            points = torch.stack(
                [
                    chosen[..., 0] * points[..., 0] + chosen[..., 1] * points[..., 1] + chosen[..., 2],
                    chosen[..., 3] * points[..., 0] + chosen[..., 4] * points[..., 1] + chosen[..., 5],
                ],
                dim=-1,
            )
            if iteration >= 10:
                visited.append(points)
        cloud = torch.cat(visited, dim=1)
        low, high = cloud.amin(1, keepdim=True), cloud.amax(1, keepdim=True)
        cloud = 2 * (cloud - low) / (high - low).clamp_min(1e-4) - 1
        turn = self._uniform(count, 1, high=2 * math.pi)
        scale, shift = self._uniform(count, 1, low=0.45, high=1.1), self._uniform(count, 2, 1, low=-0.4, high=0.4)
        x = scale * (cloud[..., 0] * torch.cos(turn) - cloud[..., 1] * torch.sin(turn)) + shift[:, 0]
        y = scale * (cloud[..., 0] * torch.sin(turn) + cloud[..., 1] * torch.cos(turn)) + shift[:, 1]
        column, row = (((t + 1) / 2 * self.side).floor().long() for t in (x, y))
        seen = (column >= 0) & (column < self.side) & (row >= 0) & (row < self.side)
        first = torch.arange(count, device=self.device)[:, None] * self.side**2
        # Counted as integers: the same bits whatever the order, which a sum of floats on a GPU is not.
        cells = (first + row * self.side + column)[seen & has[:, None]]
        density = torch.bincount(cells, minlength=count * self.side**2).view(count, self.side, self.side).float()
        density = F.avg_pool2d(density[:, None], 3, 1, 1)[:, 0]
        inside = (1 - torch.exp(-2 * density)) * has[:, None, None]
        colour = (self._colours(count) + 0.15 * textures[:, 2, None]).clamp(0, 1)
        canvas = canvas + inside[:, None] * (colour - canvas)
        covered = inside > 0.4
        kinds, owner = kinds.masked_fill(covered, _FRACTAL), owner.masked_fill(covered, OBJECTS + 1)
        return canvas, kinds, owner, torch.where(has, system, -1)

    def _photograph(self, canvas: Tensor, count: int) -> Tensor:
        shape = (count, 1, 1, 1)
        light = torch.exp(
            self._uniform(*shape, high=0.4) * (self._normal(*shape) * self.x + self._normal(*shape) * self.y) + 0.2 * self._normal(*shape)
        )
        # Blur by the Fourier transform: every scene has its own width, in pixels.
        width = self._uniform(*shape, low=0.0, high=1.4)
        spread = torch.exp(-2 * (math.pi / self.side) ** 2 * width**2 * (self.fx**2 + self.fy**2))
        blurred = torch.fft.irfft2(torch.fft.rfft2(canvas * light) * spread, s=(self.side, self.side)).clamp(0, 1)
        image = blurred ** torch.exp(0.35 * self._normal(*shape))
        image = torch.where(self._uniform(*shape) < 0.15, 1 - image, image)
        return (image + self._uniform(*shape, high=0.06) * self._normal(*image.shape)).clamp(0, 1)


def _systems() -> tuple[Tensor, Tensor]:
    """(SYSTEMS, MAPS, 6) affine maps a, b, e, c, d, f of (x, y) -> (a x + b y + e, c x + d y + f), and (SYSTEMS, MAPS) the chances of
    choosing them, added up. A system has two to five maps, each a contraction, chosen by the area that it leaves.
    """
    random = torch.Generator().manual_seed(0)
    turns = torch.rand(SYSTEMS, MAPS, 2, generator=random) * (2 * math.pi)
    sizes = 0.15 + 0.70 * torch.rand(SYSTEMS, MAPS, 2, generator=random)
    signs = torch.where(torch.rand(SYSTEMS, MAPS, 2, generator=random) < 0.5, -1.0, 1.0)
    shifts = 2 * torch.rand(SYSTEMS, MAPS, 2, generator=random) - 1
    number = torch.randint(2, MAPS + 1, (SYSTEMS, 1), generator=random)
    rotations = [
        torch.stack([torch.cos(t), -torch.sin(t), torch.sin(t), torch.cos(t)], -1).view(SYSTEMS, MAPS, 2, 2) for t in turns.unbind(-1)
    ]
    matrices = rotations[0] @ torch.diag_embed(sizes) @ rotations[1] @ torch.diag_embed(signs)
    maps = torch.cat([matrices, shifts[..., None]], dim=-1).flatten(-2)
    areas = (matrices.det().abs() + 0.02) * (torch.arange(MAPS) < number)
    return maps, (areas / areas.sum(1, keepdim=True)).cumsum(1)
