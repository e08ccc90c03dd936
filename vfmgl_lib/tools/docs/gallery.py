"""The figures of README.md and the site's first page, made from a run: smaller copies of the notebooks' figures."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from vfmgl_lib.base.files import write_bytes
from vfmgl_lib.base.strict_yaml import read_yaml

RECORD = "docs/gallery.yaml"
WIDEST = 1400  # pixels
LARGEST = 150_000  # bytes of a figure


class GalleryError(ValueError):
    """A figure of the gallery cannot be made."""


def write_gallery(root: Path, run: Path) -> list[Path]:
    """Makes every figure that `docs/gallery.yaml` names.

    Args:
        root: the clone.
        run: a profile's results with the figures.
    Returns: the files, docs/figures/*.png.
    Raises: GalleryError: a figure that the run does not have.
    """
    record = read_yaml(root / RECORD)
    sources = {name: run / entry["from"] for name, entry in record.items()}
    if missing := [str(file) for file in sources.values() if not file.is_file()]:
        raise GalleryError(f"{', '.join(missing)}: not there; run ./run_all.sh, or name another run's folder with --run")
    written = []
    for name, source in sources.items():
        written.append(root / "docs" / "figures" / f"{name}.png")
        write_bytes(written[-1], smaller(source))
    return written


def smaller(picture: Path) -> bytes:
    """A picture as PNG of at most `WIDEST` pixels across and `LARGEST` bytes: fewer pixels and, where it must be, fewer colours."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    width = min(image.width, WIDEST)
    while True:
        scaled = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        data = _png(scaled.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
        if len(data) <= LARGEST:
            return data
        width = round(width * 0.9)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
