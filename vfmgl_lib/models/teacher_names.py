"""How a teacher is named, and what a name means; without loading anything.

A teacher is named by one text:

    pocket_vit      the small ViT that comes with this project (pocket_vit.md), for where nothing can be downloaded
    NAME            timm model with its pretrained weights from the hub, e.g. vit_base_patch14_dinov2.lvd142m, or hf-hub:OWNER/REPOSITORY
    FILE            weights that describe themselves: safetensors whose metadata names architecture, model_args, mean and std, or a file
                    beside which the config.json of its repository lies
    NAME=FILE       weights in timm's layout or one that timm converts (.safetensors, .pth, .pt, .bin), see `models.weights`
    random:TEXT     the network of any of these with random weights: the control of a teacher, teaches nothing; every output says so

A text that is an existing file as a whole is FILE, whatever its suffix and whether or not "=" is in it.

Settings may name a second choice, "A else B": `models.teachers.first_available` says which of them it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
POCKET, POCKET_FILE = "pocket_vit", Path(__file__).with_name("pocket_vit.safetensors")
ELSE, HUB, RANDOM = " else ", "hf-hub:", "random:"


class TeacherError(ValueError):
    """A teacher that cannot be had as asked for; the message says what would have been right."""


@dataclass(frozen=True)
class TeacherSource:
    """A parsed teacher text: model name ("" when the file names it), weights ("hub" or a path), and whether random ones replace them."""

    name: str
    weights: str
    random: bool = False

    @classmethod
    def parse(cls, text: str, here: Path | None = None) -> TeacherSource:
        """Reads pocket_vit, NAME, FILE, NAME=FILE or random: and one of them (see the module's docstring).

        Args:
            here: the folder from which relative paths are meant; None: the working directory.
        """
        if text == POCKET:
            return cls("", str(POCKET_FILE))
        if text.startswith(RANDOM):
            return replace(cls.parse(text.removeprefix(RANDOM), here), random=True)
        if os.path.isfile(os.path.join(here or "", text)):  # unlike Path.is_file, False of a text that no path can be
            return cls("", text)
        name, equals, file = text.partition("=")
        if equals:
            return cls(name, file)
        return cls("", text) if text.endswith(WEIGHT_SUFFIXES) else cls(text, "hub")


def resolve_teacher(text: str, here: Path) -> str:
    """The teacher with its file, if it names one, as an absolute path; whether a name is a model's is not checked.

    Raises: TeacherError: if a file is named that is not there, is a folder or cannot be read.
    """
    if ELSE in text:
        return ELSE.join(resolve_teacher(one, here) for one in text.split(ELSE))
    if text == POCKET:
        return text
    if text.startswith(RANDOM):
        return RANDOM + resolve_teacher(text.removeprefix(RANDOM), here)
    source = TeacherSource.parse(text, here)
    if source.weights == "hub" and (os.sep in text or (here / text).exists()) and not text.startswith(HUB):
        raise TeacherError(f"teacher {here / text} is no file with weights; they end in {', '.join(WEIGHT_SUFFIXES)}")
    if source.weights == "hub":
        return text
    path = here / source.weights
    path = path.parent.resolve() / path.name  # a link keeps its own name: in the hub's cache it leads to a file called by its hash
    try:
        with path.open("rb"):
            return f"{source.name}={path}" if source.name else str(path)
    except OSError as error:
        whole = f", and {here / text} is no file either" if source.name else ""
        raise TeacherError(f"teacher file {path} cannot be read: {error.strerror}{whole}") from error
