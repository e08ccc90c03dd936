"""What a phantom data set consists of: samples in a fixed order, one random stream for each, and centre profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from vfmgl_lib.base.randomness import seed_sequence

SPLITS = ("train", "val", "test")
Profile = TypeVar("Profile", bound=Any)  # a frozen dataclass


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image to be written.

    Attributes:
        center, patient, image: positions, from 0; `patient` counts within centre and split, `image` within the patient.
        split: "train", "val" or "test".
        label: class index of the patient (classification), 0 where the layout has no classes.
        paths: POSIX paths relative to the data root; `render` returns one array for each, in this order.
    """

    center: int
    split: str
    patient: int
    image: int
    label: int
    paths: tuple[str, ...]


def stream(seed: int, layout: str, purpose: str, sample: Sample, image: int = 0) -> np.random.Generator:
    """The random generator of one purpose: it depends on these arguments and the patient, never on earlier draws."""
    keys = ("phantoms", layout, purpose, sample.center, sample.split, sample.patient, image)
    return np.random.default_rng(seed_sequence(seed, *keys))


def patient_name(center: int, split: str, patient: int) -> str:
    """A name no two patients share, whatever their centre and split: P, centre digit, split digit, number."""
    return f"P{center + 1}{SPLITS.index(split) + 1}{patient:03d}"


def spread_over_patients(count: int, images_of: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """Yield `count` pairs (patient, image); patient p gives `images_of(p)` images, the last one what is left.

    A larger count continues the same sequence, so more samples never change the earlier ones.
    """
    patient, image = 0, 0
    for _ in range(count):
        if image == images_of(patient):
            patient, image = patient + 1, 0
        yield patient, image
        image += 1


def blend(common: Profile, center: Profile, heterogeneity: float) -> Profile:
    """Profile of a centre: `common` at heterogeneity 0, `center` at 1, linear in between and beyond.

    Both are instances of the same frozen dataclass of floats and tuples of floats.
    """
    values = {}
    for field in dataclasses.fields(common):
        low, high = getattr(common, field.name), getattr(center, field.name)
        if isinstance(low, tuple):
            values[field.name] = tuple(a + heterogeneity * (b - a) for a, b in zip(low, high, strict=True))
        else:
            values[field.name] = low + heterogeneity * (high - low)
    return dataclasses.replace(common, **values)


def scattered(common: Profile, centers: Sequence[Profile], rng: np.random.Generator, reach: float = 0.5) -> Profile:
    """A random profile: every number uniform over the range of `common` and the centres, widened on both sides by `reach` of its length."""

    def draw(values: Sequence[float]) -> float:
        low, high = min(values), max(values)
        return float(rng.uniform(low - reach * (high - low), high + reach * (high - low)))

    values = {}
    for field in dataclasses.fields(common):
        known = [getattr(profile, field.name) for profile in (common, *centers)]
        values[field.name] = tuple(map(draw, zip(*known, strict=True))) if isinstance(known[0], tuple) else draw(known)
    return dataclasses.replace(common, **values)
