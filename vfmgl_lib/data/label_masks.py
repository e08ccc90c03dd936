"""Which value of a mask file stands for which class, and in which colour pictures show it.

A mask of two classes has 0 and 255 (or 0 and 1), which `images.decode_mask` tells by itself: its set names no values. All other masks hold
one value a class, in the order of the classes and the background first; where a set names none they are 0, 1, …, K - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Foreground classes in pictures, from class 1 on: Okabe and Ito 2008, told apart by colour-blind eyes, the light ones first. On a scan's
# background black would not be seen. After eight classes they come again.
COLORS = ("#F0E442", "#56B4E9", "#D55E00", "#CC79A7", "#009E73", "#E69F00", "#FFFFFF", "#0072B2")
LARGEST_VALUE = 65535  # of a PNG of 16 bits
MOST_CLASSES = 256  # masks are resized and kept as bytes
SHOWN = 12
REMEDY = "`mask_values` in the task's file names others"


def values_of(classes: int, given: Sequence[int] | None = None) -> tuple[int, ...]:
    """The value of each class in mask files; (): two classes, told by `images.decode_mask` itself.

    Args:
        classes: K, the background counted.
        given: what the set names; None or (): nothing.
    Raises: ValueError: not one value a class, a value twice or outside 0 to 65535, more than 256 classes.
    """
    if classes > MOST_CLASSES:
        raise ValueError(f"{classes} classes of pixels, at most {MOST_CLASSES} are possible")
    if not given:
        return tuple(range(classes)) if classes > 2 else ()
    if len(given) != classes or len(set(given)) != classes:
        raise ValueError(f"mask_values must be {classes} different values, one a class, got {in_words(given)}")
    if wrong := [value for value in given if not 0 <= value <= LARGEST_VALUE]:
        raise ValueError(f"mask_values must lie between 0 and {LARGEST_VALUE}, got {in_words(wrong)}")
    return tuple(given)


def in_words(values: Sequence[int] | np.ndarray) -> str:
    """ "0, 1, 2, 3", cut short after some; of no values "0 and 255 (or 0 and 1)"."""
    if not len(values):
        return "0 and 255 (or 0 and 1)"
    return ", ".join(str(int(value)) for value in values[:SHOWN]) + (", …" if len(values) > SHOWN else "")


def class_color(index: int) -> str:
    """Of a foreground class, from 1 on."""
    return COLORS[(index - 1) % len(COLORS)]


def encoded(indices: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Class indices (...) as the values that mask files hold: uint8 where all values fit, else uint16.

    Args:
        values: from `values_of`; (): class 1 becomes 255, everything else 0.
    """
    if not values:
        return (indices == 1).astype(np.uint8) * np.uint8(255)
    return np.asarray(values, np.uint8 if max(values) < 256 else np.uint16)[indices]


def class_indices(found: np.ndarray, values: Sequence[int], alpha: np.ndarray | None = None, lossy: bool = False) -> np.ndarray:
    """Values of a mask file (...) as uint8 class indices.

    Args:
        alpha: of the file's pixels, or None.  lossy: the file's format does not keep values.
    Raises: ValueError: values that are no class; names them and those allowed. A lossy file, or one that is transparent in places.
    """
    if lossy:
        raise ValueError(f"mask is a JPEG, which does not keep values, expected a PNG or TIFF of {in_words(values)}")
    if alpha is not None and alpha.min() != alpha.max():
        raise ValueError(f"mask is transparent in places, expected one channel of {in_words(values)} without alpha")
    there = np.unique(found)
    unknown = there[~np.isin(there, values)]
    if len(unknown):
        raise ValueError(
            f"mask has {'value' if len(unknown) == 1 else 'values'} {in_words(unknown)}, expected only {in_words(values)}; {REMEDY}"
        )
    order = np.argsort(values)
    place = np.searchsorted(np.asarray(values, dtype=np.int64)[order], found)
    return order.astype(np.uint8)[place]


def palette_values(index: np.ndarray, color: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """What a mask with a palette holds: its indices, or its greys where these are the classes' values and the indices are not.

    Programs that shrink files give a grey picture a palette and number the greys anew; programs that paint labels give each index a colour.

    Args:
        index: (H, W).  color: (H, W, 3), the palette's.
    Raises: ValueError: both would do, and mean different classes.
    """
    grey = color[..., 0]
    fits = [np.isin(one, values).all() for one in (index, grey)]
    if not fits[1] or (color != color[..., :1]).any() or (index == grey).all():
        return index
    if fits[0]:
        raise ValueError(
            f"mask has the indices {in_words(np.unique(index))}, which its palette makes the greys {in_words(np.unique(grey))}: both are "
            "values of classes; save it without palette"
        )
    return grey
