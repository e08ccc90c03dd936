"""A made-up segmentation of four classes at three centres, as a task of its own: for the tests of more than two classes."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from vfmgl_lib.tasks.records import add_tasks_from

TASK = "organs"
CLASSES = ("background", "disc", "bar", "corner")
VALUES = (0, 50, 100, 200)
SIDE = 32
COUNTS = {"train": 6, "val": 3, "test": 4}
RECORD = {
    "order": 60,
    "use": "outlines a disc, a bar and a corner",
    "kind": "segmentation",
    "classes": list(CLASSES),
    "student": "unet",
    "loss": "dice",
    "folders": "mask_folders",
    "patient_rule": "the patient is what the name has before its first '_',",
    "settings_like": "nuclei",
    "settings": {
        "data": {"image_size": SIDE, "workers": 0, "validation_share": 0.0},
        "student": {"width": 4, "weights": "none"},
        "optimizer": {"lr": 0.05, "batch_size": 3},
        "federation": {"rounds": 2, "match_updates": False},
        "teacher": {"source": "random:vit_tiny_patch16_224", "grid": 2},
    },
}


def add_organs(folder: Path, **changes) -> Path:
    """Writes the task's record below `folder` and adds it; the caller removes it from TASKS. Returns the folder of tasks."""
    (folder / "tasks" / TASK).mkdir(parents=True)
    record = yaml.safe_dump(RECORD | changes, allow_unicode=True, sort_keys=False)
    (folder / "tasks" / TASK / "task.yaml").write_text(record, encoding="utf-8")
    add_tasks_from(folder / "tasks")
    return folder / "tasks"


def picture(seed: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """(side, side, 3) uint8 and class indices (side, side): a disc, a bar and a corner, each at its own brightness; one may be missing."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    mask = np.zeros((side, side), np.uint8)
    mask[(rows > 0.8) & (columns > 0.7 - 0.1 * random.random())] = 3
    if seed % 3:
        start = 0.55 + 0.1 * random.random()
        mask[(rows > start) & (rows < start + 0.15) & (columns < 0.6)] = 2
    if seed % 4:
        mask[(rows - 0.3) ** 2 + (columns - 0.5) ** 2 < (0.12 + 0.08 * random.random()) ** 2] = 1
    image = np.array([30, 90, 150, 220])[mask][..., None] + random.normal(0, 8, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_organs(root: Path, values: tuple[int, ...] = VALUES, side: int = SIDE) -> Path:
    """Centres "A", "B", "C" in the layout mask_folders; masks hold `values`."""
    for place, center in enumerate("ABC"):
        for part, (split, count) in enumerate(COUNTS.items()):
            for kind in ("images", "labels"):
                (root / center / split / kind).mkdir(parents=True)
            for number in range(count):
                image, mask = picture(100 * place + 30 * part + number, side)
                name = f"{center}{split}{number}_0.png"
                Image.fromarray(image).save(root / center / split / "images" / name)
                Image.fromarray(np.asarray(values, np.uint16 if max(values) > 255 else np.uint8)[mask]).save(
                    root / center / split / "labels" / name
                )
    return root
