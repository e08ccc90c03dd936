"""The figures of README.md and of the site, made from a run: smaller copies of the notebooks' figures, and one that is drawn anew.

Notebook 05 outlines all methods of the profile. A page has room for a few, which the record names: they are drawn from the same studies.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vfmgl_lib.base.files import write_bytes
from vfmgl_lib.base.strict_yaml import read_yaml

RECORD = "docs/gallery.yaml"
WIDEST = 1400  # pixels
LARGEST = 150_000  # bytes of a figure
COLORS = (256, 128, 64)  # tried before a figure is made smaller


class GalleryError(ValueError):
    """A figure of the gallery cannot be made."""


def write_gallery(root: Path, run: Path) -> list[Path]:
    """Makes every figure that `docs/gallery.yaml` names.

    Args:
        root: the clone.
        run: a profile's results with the figures and, for outlines, the studies.
    Returns: the files, docs/figures/*.png.
    Raises: GalleryError: a figure or a study that the run does not have; nothing is written then.
    """
    record = read_yaml(root / RECORD)
    copied = {name: run / entry["from"] for name, entry in record.items() if "from" in entry}
    if missing := [str(file) for file in copied.values() if not file.is_file()]:
        raise GalleryError(f"{', '.join(missing)}: not there; run ./run_all.sh, or name another run's folder with --run")
    with tempfile.TemporaryDirectory() as folder:
        drawn = {name: _outlines(run, entry, Path(folder) / f"{name}.png") for name, entry in record.items() if "outlines" in entry}
        made = {name: smaller(source) for name, source in (copied | drawn).items()}
    for name, data in made.items():
        write_bytes(root / "docs" / "figures" / f"{name}.png", data)
    return [root / "docs" / "figures" / f"{name}.png" for name in made]


def smaller(picture: Path) -> bytes:
    """A picture as PNG of at most `WIDEST` pixels across and `LARGEST` bytes: fewer colours and, where it must be, fewer pixels."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    width = min(image.width, WIDEST)
    while True:
        scaled = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        for colors in COLORS:
            buffer = io.BytesIO()
            scaled.quantize(colors, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            if buffer.tell() <= LARGEST:
                return buffer.getvalue()
        width = round(width * 0.9)


def _outlines(run: Path, entry: Mapping[str, Any], target: Path) -> Path:
    """Draws the outlines of some methods of one task; seed 0, equal rounds."""
    import pandas as pd  # these take seconds

    from vfmgl_lib.figures import overview, style
    from vfmgl_lib.study.study import load_study

    task = run / entry["task"]
    studies = []
    for method in entry["outlines"]:
        found = [file.parent for file in sorted(task.glob(f"studies/{method}-seed0-*/config.json")) if _is_plain(file)]
        if len(found) != 1:
            raise GalleryError(f"{task}: {len(found)} studies of {method}, expected one; run ./run_all.sh --task {entry['task']}")
        studies.append(load_study(found[0]))
    final = pd.concat([study.final_predictions() for study in studies], ignore_index=True)
    figure, _ = overview.outline_chart(final, studies[-1].manifest, studies[-1].settings.data, "rounds")
    style.footnote(figure, f"Teacher: {studies[-1].teacher_description}. Data: embedded phantoms (synthetic); profile {run.name}, seed 0.")
    style.write_png(figure, target)
    return target


def _is_plain(config: Path) -> bool:
    """Whether a study is of all centres and of the data's own division."""
    settings = json.loads(config.read_text("utf-8"))["settings"]
    return settings.get("centers") is None and settings["data"]["split"] is None
