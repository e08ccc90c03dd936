"""A made-up task of three classes that have an order, with three centres and an external one."""

from pathlib import Path

import numpy as np
from PIL import Image

TASK = """
order: 60
use: tells dark, grey and bright squares apart
kind: classification
classes: [dark, grey, bright]
ordinal: true
student: resnet18
loss: cross_entropy
folders: class_folders
settings_like: endometrial
"""
LEVELS = {"dark": 80, "grey": 120, "bright": 160}  # not in the order of their names
CENTERS = ("North", "South", "West")
EXTERNAL = "East"


def write_task(folder: Path) -> Path:
    """The folder that holds the task's folder."""
    (folder / "shades").mkdir(parents=True)
    (folder / "shades" / "task.yaml").write_text(TASK)
    return folder


def write_images(root: Path, train: int = 5, test: int = 5, lacking: tuple[str, str] = ("", "")) -> Path:
    """Patients of each class with one image each; `lacking`: a centre and the class that it does not have."""
    for number, center in enumerate((*CENTERS, EXTERNAL)):
        for split, patients in (("traindata", range(train)), ("testdata", range(train, train + test))):
            for label, level in LEVELS.items():
                if (center, label) == lacking or (center, split) == (EXTERNAL, "traindata"):
                    continue
                for patient in patients:
                    folder = root / center / split / label / f"{center}-{label}-{patient}"
                    folder.mkdir(parents=True)
                    random = np.random.default_rng([number, level, patient])
                    pixels = level + 25 * random.standard_normal() + random.integers(-45, 45, (36, 36, 3))
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "image.png")
    return root
