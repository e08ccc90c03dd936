"""Small tasks of one's own for the tests: their YAML files, and generated images that are not square in the documented folders."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSIFICATION = """\
use: tells dark fields from bright ones
kind: classification
classes: [benign, malign]
image_resize: {resize}
background: black
settings:
  data: {{image_size: 32}}
  student: {{width: 4, weights: none}}
  optimizer: {{batch_size: 6}}
"""
SEGMENTATION = """\
use: outlines cysts
kind: segmentation
classes: [background, cyst]
image_resize: {resize}
settings:
  data: {{image_size: 32}}
  student: {{width: 4}}
  optimizer: {{name: adam, lr: 1.0e-2, batch_size: 3}}
"""


def write_task(file: Path, text: str, resize: str = "stretch") -> Path:
    file.write_text(text.format(resize=resize), encoding="utf-8")
    return file


def write_classes(root: Path, classes: tuple[str, str] = ("benign", "malign"), patients: int = 10) -> Path:
    """Two centres that train and an external one; 64 x 40 pixels, one image a patient; in the malign ones a bright field."""
    for number, center in enumerate(("North", "South", "West")):
        for label, name in enumerate(classes):
            for patient in range(patients):
                split = "testdata" if patient >= 6 or center == "West" else "traindata"
                folder = root / center / split / name / f"{center}{name}{patient}"
                folder.mkdir(parents=True)
                pixels = np.random.default_rng([number, label, patient]).integers(60, 120, (40, 64, 3))
                pixels[10:30, 20:40] += 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "0.png")
    return root


def write_masks(root: Path) -> Path:
    """Two centres; 64 x 40 pixels, one image a patient; a dark disc, which is the mask."""
    rows, columns = np.mgrid[:40, :64]
    for number, center in enumerate(("North", "South")):
        for patient in range(12):
            split = "train" if patient < 6 else "val" if patient < 8 else "test"
            generator = np.random.default_rng([number, patient])
            row, column, radius = generator.integers(14, 26), generator.integers(22, 42), generator.integers(7, 11)
            mask = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
            pixels = generator.integers(130, 190, (40, 64, 3))
            pixels[mask] -= 100
            for part, content in (("images", pixels.astype(np.uint8)), ("labels", mask.astype(np.uint8) * 255)):
                folder = root / center / split / part
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(folder / f"{center}{patient}_a.png")
    return root
