"""Random fields and soft shapes on a square pixel grid, from which the phantoms are painted.

Every array is (size, size) float32. Shapes are signed distances: negative inside, zero on the boundary.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

# A cubic B-spline over unit white noise has this standard deviation, averaged over the positions between knots.
_SPLINE_STD = 0.479


@lru_cache(maxsize=8)
def unit_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (x to the right, y downwards) in [-1, 1], two read-only (size, size) arrays."""
    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


@lru_cache(maxsize=64)
def _spline_basis(size: int, knots: int) -> np.ndarray:
    """(size, knots) weights of the uniform cubic B-splines at the pixel centres."""
    position = (np.arange(size) + 0.5) / size * (knots - 3)
    first = np.minimum(position.astype(int), knots - 4)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((size, knots), np.float32)
    np.put_along_axis(basis, first[:, None] + np.arange(4), weights.astype(np.float32), axis=1)
    basis.setflags(write=False)
    return basis


def smooth_field(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """A smooth random field, mean 0 and standard deviation about 1.

    Args:
        scale: knot distance as a share of the image's side; details are about as large. Never finer than a pixel.
    """
    knots = 3 + max(1, min(size, math.ceil(1 / scale)))
    basis = _spline_basis(size, knots)
    noise = rng.standard_normal((knots, knots), dtype=np.float32)
    return basis @ noise @ basis.T / _SPLINE_STD


def streaks(rng: np.random.Generator, across: np.ndarray, width: float) -> np.ndarray:
    """Fibres: random values, mean 0 and standard deviation about 1, constant where `across` is constant.

    Args:
        across: coordinate across the fibres, any range; bend it to bend the fibres.
        width: distance between independent fibres, in the unit of `across`.
    """
    low = float(across.min())
    values = rng.standard_normal(math.ceil((float(across.max()) - low) / width) + 2, dtype=np.float32)
    position = (across - low) / width
    first = position.astype(np.int32)
    share = position - first
    share = share * share * (3 - 2 * share)
    return (values[first] * (1 - share) + values[first + 1] * share) * 1.15


def ellipse_distance(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """Signed distance to the ellipse (u/a)² + (v/b)² = 1, exact on it and first order around it."""
    p, q = u / a, v / b
    level = np.sqrt(p * p + q * q)
    slope = np.sqrt((p / a) ** 2 + (q / b) ** 2)
    return level * (level - 1) / np.maximum(slope, 1e-6)


def smooth_union(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """Signed distance of the union of two shapes, their corner filled over `width`."""
    share = np.clip(0.5 + 0.5 * (second - first) / width, 0, 1)
    return second + (first - second) * share - width * share * (1 - share)


def cover(distance: np.ndarray, softness: float) -> np.ndarray:
    """Share of each pixel inside the shape, in [0, 1]: a ramp `softness` wide across the boundary."""
    return np.clip(0.5 - distance / softness, 0, 1)


def paint(canvas: np.ndarray, share: np.ndarray, value: np.ndarray | float) -> None:
    """Lay `value` over the canvas, in place, where `share` (in [0, 1]) covers it."""
    canvas += share * (value - canvas)
