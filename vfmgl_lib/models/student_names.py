"""How a student is named, and what a name means; without loading anything.

resnet18     classification: the paper's, with a width of its own (`models.students.ResNet18`)
NAME         classification: any CNN of timm whose stages can be tapped, e.g. resnet34 or convnext_atto.d2_in1k (`models.timm_students`)
unet         segmentation: the paper's, with a width of its own (`models.students.UNet`)
unet:NAME    segmentation: a UNet with such a CNN as its encoder, e.g. unet:resnet34; the width is the decoder's
"""

from __future__ import annotations

import functools

from vfmgl_lib.models.timm_names import unknown_name

CLASSIFIER, SEGMENTER = "resnet18", "unet"  # the paper's
WITH_ENCODER = "unet:"
EXAMPLES = "e.g. resnet34, mobilenetv3_small_100, efficientnet_b0, convnext_atto or densenet121"


class StudentError(ValueError):
    """A student that cannot be had or trained as asked for; the message names it and says what would have been right."""


def segments(name: str) -> bool:
    """Whether the student of this name gives a mask; else it gives a class."""
    return name == SEGMENTER or name.startswith(WITH_ENCODER)


def network_name(name: str) -> str:
    """timm's name of a student's network or encoder; "" for the paper's two."""
    return "" if name in (CLASSIFIER, SEGMENTER) else name.removeprefix(WITH_ENCODER)


def has_width(name: str) -> bool:
    """Whether the setting `student.width` says anything of it; a CNN of timm has the width of its name."""
    return name == CLASSIFIER or segments(name)


@functools.cache
def check_student_name(name: str) -> None:
    """Raises: StudentError: timm knows no such model, or no such weights of it; names similar ones."""
    if name in (CLASSIFIER, SEGMENTER):
        return
    if problem := unknown_name(network_name(name)):
        raise StudentError(f"student {name}: {problem}; {EXAMPLES}")
