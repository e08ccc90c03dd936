"""Every format, depth, channel layout and orientation that can be written here, through preparation, loading, export's checks and
prediction: the same pixels from all four, or an error that names the file, what was found and what is expected.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from vfmgl_lib.data.images import ImageError, Reading, decode_image
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.tasks.prepare import prepare
from vfmgl_lib.tools.export.checks import _pixels
from vfmgl_lib.tools.predict.files import predict_files

SIDE, MAX_VALUE = 24, 4095
ROW, COLUMN = np.indices((SIDE, SIDE))
COLOR = np.stack([10 * ROW, 10 * COLUMN, 255 - 5 * (ROW + COLUMN)], axis=2).astype(np.uint8)  # smooth, as JPEG needs it; no symmetry
GRAY = COLOR[..., 2] // 2 + COLOR[..., 0] // 2
ALPHA = np.where(ROW < 9, 255, np.where(COLUMN < 9, 0, 10 * COLUMN)).astype(np.uint8)
# As EXIF defines them: from what is stored to what is shown.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
INVERSE = {6: 8, 8: 6}
ALL, TWO, NONE = tuple(SHOWN), (1, 6), (1,)


def stored(array, orientation):
    """What has to be stored so that `array` is shown."""
    return np.ascontiguousarray(SHOWN[INVERSE.get(orientation, orientation)](array))


def three(gray):
    return np.repeat(gray[..., None], 3, axis=2)


def on(color, alpha, background=255):
    color, alpha = np.asarray(color, float), np.asarray(alpha, float)[..., None]
    return (color * alpha + background * (255 - alpha)) / 255


def deep(array, white=MAX_VALUE, kind=np.uint16):
    """8-bit values spread over 0 to `white`."""
    values = array.astype(np.float64) / 255 * white
    return (values if np.dtype(kind).kind == "f" else np.rint(values)).astype(kind)


@dataclass
class Kind:
    """How a file is written, and what has to come out: (H, W, 3), or the error."""

    name: str
    suffix: str
    write: Callable
    expected: np.ndarray | None = None
    refused: str = ""
    error: float = 0.51  # greatest difference of a value
    turns: tuple[int, ...] = ALL


def by_pillow(array, mode=None, **options):
    def write(path, orientation):
        image = Image.fromarray(stored(array, orientation)) if mode is None else converted(stored(array, orientation), mode)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, **({"exif": exif} if orientation > 1 else {}), **options)

    return write


def converted(array, mode):
    if mode in ("P", "PA"):
        image = Image.fromarray(array).quantize(16, dither=Image.Dither.NONE)
        return image if mode == "P" else image.convert("PA")
    if mode == "CMYK":
        return Image.merge("CMYK", [*map(Image.fromarray, np.moveaxis(255 - array, 2, 0)), Image.new("L", array.shape[1::-1], 0)])
    return Image.fromarray(array, mode) if mode == "LAB" else Image.fromarray(array).convert(mode)


def by_tifffile(array, tags=(), planar=False, **options):
    def write(path, orientation):
        pixels = stored(array, orientation)
        if planar:
            pixels = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
            options["planarconfig"] = "separate"
        tifffile.imwrite(path, pixels, extratags=[(274, "H", 1, orientation, True), *tags], metadata=None, **options)

    return write


PNG_COLORS = {1: 0, 3: 2, 2: 4, 4: 6}
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(array, significant=None, transparent=None, interlaced=False):
    """A PNG of 8 or 16 bits a channel, as the standard has it; Pillow writes 16 bits of gray only, and nothing interlaced."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def write(path, orientation):
        pixels = stored(array, orientation)
        height, width, count = pixels.shape
        parts = [pixels[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [pixels]
        big = f">u{array.itemsize}"
        lines = b"".join(b"\0" + line.astype(big).tobytes() for part in parts for line in part if line.size)
        header = struct.pack(">IIBBBBB", width, height, 8 * array.itemsize, PNG_COLORS[count], 0, 0, int(interlaced))
        exif = Image.Exif()
        exif[0x0112] = orientation
        chunks = [(b"IHDR", header)]
        chunks += [(b"sBIT", bytes([significant] * count))] if significant else []
        chunks += [(b"tRNS", np.asarray(transparent, ">u2").tobytes())] if transparent is not None else []
        chunks += [(b"eXIf", exif.tobytes()[6:])] if orientation > 1 else []
        chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks))

    return write


def bmp16(path, orientation):
    """A BMP of 5 bits a channel, from the bottom up."""
    five = COLOR[::-1].astype(np.uint16) >> 3
    body = ((five[..., 0] << 10) | (five[..., 1] << 5) | five[..., 2]).astype("<u2").tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 16, 0, len(body), 2835, 2835, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + head + body)


def bmp32(path, orientation):
    """A BMP of 32 bits whose last byte is declared as alpha and never written."""
    rows = np.dstack([COLOR[::-1, :, ::-1], np.zeros_like(GRAY)]).tobytes()
    head = struct.pack("<IiiHHIIiiII4I", 108, SIDE, SIDE, 1, 32, 3, len(rows), 2835, 2835, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head += b"BGRs" + bytes(48)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows)


def by_itk(path, orientation):
    image = sitk.GetImageFromArray(deep(COLOR), isVector=True)
    sitk.WriteImage(image, str(path), useCompression=True, **({"compressor": "LZW"} if path.suffix == ".tif" else {}))


def white_tag(value, kind="H", code=281):
    return [(code, kind, 1, value, True)]


def eight_bits():
    """What 0.1.0 read, orientation and transparency apart."""
    for suffix, options in (
        (".png", {}),
        (".tif", {}),
        (".tif", {"compression": "tiff_lzw"}),
        (".tif", {"compression": "tiff_adobe_deflate"}),
        (".tif", {"compression": "packbits"}),
        (".bmp", {}),
    ):
        name, turns = f"{suffix[1:]} {options.get('compression', '')}", NONE if suffix == ".bmp" else ALL
        yield Kind(f"{name} RGB", suffix, by_pillow(COLOR, **options), COLOR, turns=turns)
        yield Kind(f"{name} L", suffix, by_pillow(GRAY, **options), three(GRAY), turns=turns)
        yield Kind(f"{name} 1", suffix, by_pillow(GRAY > 120, **options), three((GRAY > 120) * 255), turns=turns)
        yield Kind(f"{name} P", suffix, by_pillow(COLOR, "P", **options), np.asarray(converted(COLOR, "P").convert("RGB")), turns=turns)
        if suffix != ".bmp":
            yield Kind(f"{name} RGBA", suffix, by_pillow(np.dstack([COLOR, ALPHA]), **options), on(COLOR, ALPHA))
            yield Kind(f"{name} LA", suffix, by_pillow(np.dstack([GRAY, ALPHA]), **options), on(three(GRAY), ALPHA))
        if suffix == ".tif" and options.get("compression") != "tiff_lzw":
            yield Kind(f"{name} CMYK", suffix, by_pillow(COLOR, "CMYK", **options), COLOR)
            refused = "pixel mode LAB, expected one of .*; convert the file to RGB"
            yield Kind(f"{name} LAB", suffix, by_pillow(COLOR, "LAB", **options), refused=refused)
    best = {"quality": 95, "subsampling": 0}
    yield Kind("JPEG RGB", ".jpg", by_pillow(COLOR, **best), COLOR, error=6)
    yield Kind("JPEG L", ".jpg", by_pillow(GRAY, quality=95), three(GRAY), error=6)
    yield Kind("JPEG progressive", ".jpg", by_pillow(COLOR, progressive=True, **best), COLOR, error=6)
    yield Kind("JPEG CMYK", ".jpg", by_pillow(COLOR, "CMYK", **best), COLOR, error=6)
    yield Kind("TIFF JPEG", ".tif", by_pillow(COLOR, compression="jpeg", quality=95), COLOR, error=25)  # colours of four pixels in one
    yield Kind("PNG RGBA opaque", ".png", by_pillow(np.dstack([COLOR, np.full_like(GRAY, 255)])), COLOR, error=0)
    yield Kind("PNG tRNS", ".png", by_pillow(COLOR, transparency=tuple(map(int, COLOR[2, 3]))), on(COLOR, 255 - 255 * at(COLOR, 2, 3)))
    yield Kind("PNG interlaced", ".png", png(COLOR, interlaced=True), COLOR)
    yield Kind("BMP 16", ".bmp", bmp16, COLOR, error=8, turns=NONE)
    yield Kind("BMP 32", ".bmp", bmp32, COLOR, turns=NONE)


def at(color, row, column):
    return (color == color[row, column]).all(axis=2)


def deep_png():
    for count, pixels in ((1, GRAY[..., None]), (3, COLOR), (2, np.dstack([GRAY, ALPHA])), (4, np.dstack([COLOR, ALPHA]))):
        expected = {1: three(GRAY), 3: COLOR, 2: on(three(GRAY), ALPHA), 4: on(COLOR, ALPHA)}[count]
        yield Kind(f"PNG {count}x16", ".png", png(deep(pixels)), expected)
        yield Kind(f"PNG {count}x16 interlaced", ".png", png(deep(pixels), interlaced=True), expected, turns=TWO)
        yield Kind(f"PNG {count}x16 raw sBIT", ".png", png(deep(pixels, 1023), significant=10), expected, turns=TWO)
        spread = (deep(pixels, 1023) << 6) | (deep(pixels, 1023) >> 4)
        yield Kind(f"PNG {count}x16 spread sBIT", ".png", png(spread, significant=10), expected, turns=TWO)
        yield Kind(f"PNG {count}x16 full sBIT", ".png", png(deep(pixels, 65535), significant=16), expected, turns=TWO)
        yield Kind(f"PNG {count}x16 above", ".png", png(deep(pixels, 65535)), refused="expected 0 to 4095 as --max-value says; nothing is")
    key = deep(COLOR)[2, 3]
    yield Kind("PNG 3x16 tRNS", ".png", png(deep(COLOR), transparent=key), on(COLOR, 255 - 255 * at(COLOR, 2, 3)))
    yield Kind("PNG I;16 Pillow", ".png", by_pillow(deep(GRAY)), three(GRAY))
    yield Kind("PNG SimpleITK", ".png", by_itk, COLOR, turns=NONE)


def deep_tiff():
    own = {"photometric": "rgb"}
    layouts = {
        "strips": {},
        "tiles": {"tile": (16, 16)},
        "deflate": {"compression": "zlib"},
        "big endian": {"byteorder": ">"},
        "BigTIFF": {"bigtiff": True},
        "rows": {"rowsperstrip": 5},
    }
    for kind in (np.uint16, np.int16, np.uint32, np.int32, np.float16, np.float32, np.float64):
        name = np.dtype(kind).name
        for layout, options in layouts.items():
            yield Kind(f"TIFF {name} RGB {layout}", ".tif", by_tifffile(deep(COLOR, kind=kind), **own, **options), COLOR, turns=TWO)
            planes = by_tifffile(deep(COLOR, kind=kind), planar=True, **own, **options)
            yield Kind(f"TIFF {name} planes {layout}", ".tif", planes, COLOR, turns=TWO)
        yield Kind(f"TIFF {name} gray", ".tif", by_tifffile(deep(GRAY, kind=kind)), three(GRAY), turns=ALL)
        yield Kind(f"TIFF {name} white is 0", ".tif", by_tifffile(deep(255 - GRAY, kind=kind), photometric="miniswhite"), three(GRAY))
        alpha = by_tifffile(deep(np.dstack([COLOR, ALPHA]), kind=kind), extrasamples=["unassalpha"], **own)
        yield Kind(f"TIFF {name} alpha", ".tif", alpha, on(COLOR, ALPHA), error=0.6)
        multiplied = np.dstack([COLOR * (ALPHA / 255)[..., None], ALPHA])
        yield Kind(
            f"TIFF {name} alpha multiplied",
            ".tif",
            by_tifffile(deep(multiplied, kind=kind), extrasamples=["assocalpha"], **own),
            on(COLOR, ALPHA),
            error=1,
        )
        extra = by_tifffile(deep(np.dstack([COLOR, ALPHA]), kind=kind), extrasamples=["unspecified"], **own)
        yield Kind(f"TIFF {name} extra", ".tif", extra, COLOR)
    gray_alpha = by_tifffile(deep(np.dstack([GRAY, ALPHA])), photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    yield Kind("TIFF gray alpha", ".tif", gray_alpha, on(three(GRAY), ALPHA))
    for code, name in ((281, "MaxSampleValue"), (341, "SMaxSampleValue")):
        yield Kind(f"TIFF {name}", ".tif", by_tifffile(deep(COLOR, 1023), white_tag(1023, code=code), **own), COLOR)
    yield Kind("TIFF declared 5000", ".tif", by_tifffile(deep(GRAY, 5000), white_tag(5000)), three(GRAY))
    yield Kind("TIFF reals to 1", ".tif", by_tifffile(deep(COLOR, 1, np.float32), white_tag(1.0, "f", 341), **own), COLOR)
    yield Kind("TIFF predictor", ".tif", by_tifffile(deep(COLOR), compression="zlib", predictor=True, **own), COLOR)
    yield Kind("TIFF LZW SimpleITK", ".tif", by_itk, COLOR, turns=NONE)
    yield Kind("TIFF I;16 Pillow", ".tif", by_pillow(deep(GRAY), compression="tiff_lzw"), three(GRAY), turns=NONE)
    yield Kind("TIFF I Pillow", ".tif", by_pillow(deep(GRAY, kind=np.int32)), three(GRAY))
    yield Kind("TIFF F Pillow", ".tif", by_pillow(deep(GRAY, kind=np.float32)), three(GRAY))
    yield Kind("TIFF below 0", ".tif", by_tifffile(deep(GRAY, kind=np.int16) - 1500), refused="values from -376 to .*, expected 0 to 4095")
    above = by_tifffile(deep(GRAY), white_tag(1023))
    yield Kind("TIFF above its tag", ".tif", above, refused="expected 0 to 1023 as its tag MaxSampleValue says")
    broken = np.where(GRAY == GRAY[0, 0], np.nan, GRAY).astype(np.float32)
    yield Kind("TIFF NaN", ".tif", by_tifffile(broken), refused="values are NaN or infinite, expected finite")
    yield Kind("TIFF complex", ".tif", by_tifffile(GRAY.astype(np.complex64)), refused="samples of 64 bits and format 6, expected")
    separated = by_tifffile(deep(np.dstack([COLOR, GRAY])), photometric="separated")
    yield Kind("TIFF CMYK 16", ".tif", separated, refused="4 channels of kind SEPARATED and 16 bits, expected gray or RGB")
    two = by_tifffile(deep(np.dstack([GRAY, GRAY])), photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"])
    yield Kind("TIFF two channels", ".tif", two, refused="2 channels of kind MINISBLACK and 16 bits, expected gray or RGB")
    stack = by_tifffile(np.stack([deep(GRAY, kind=np.float64)] * 3), photometric="minisblack")
    yield Kind("TIFF stack", ".tif", stack, refused="holds 3 frames, expected one", turns=NONE)


KINDS = [*eight_bits(), *deep_png(), *deep_tiff()]


class Recorder:
    """In the place of an exported model: keeps what it is shown."""

    def __init__(self, reading):
        self.shown = []
        about = {"task": "nuclei", "kind": "segmentation", "classes": ("background", "nucleus"), "mask_values": (), "series": ()}
        self.description = SimpleNamespace(reads=("image",), image_size=SIDE, reading=reading, **about)

    def run(self, images):
        self.shown += list(images)
        return np.zeros((len(images), 2, SIDE, SIDE), np.float32), None

    def probability(self, logits):
        return np.zeros((len(logits), SIDE, SIDE))


def written(folder, wanted):
    """Every kind in every orientation that it has, as a centre of `nuclei`; mask: the same everywhere, where it is shown."""
    root = folder / "source"
    for split in ("train", "test"):
        for part in ("images", "labels"):
            (root / "SiteA" / split / part).mkdir(parents=True)
    files = {}
    for number, kind in enumerate(wanted):
        for orientation in kind.turns:
            stem = f"{number:03}o{orientation}_0"
            path = root / "SiteA" / ("test" if number % 7 == 0 else "train") / "images" / f"{stem}{kind.suffix}"
            kind.write(path, orientation)
            Image.fromarray((GRAY > 120).astype(np.uint8) * 255).save(path.parents[1] / "labels" / f"{stem}.png")
            files[path.relative_to(root).as_posix()] = (kind, orientation)
    return root, files


def test_all_readers_see_what_was_meant(tmp_path):
    root, files = written(tmp_path, [kind for kind in KINDS if not kind.refused])
    prepared = prepare("nuclei", root, tmp_path / "set", max_value=MAX_VALUE, split="source", progress=False)
    table, reading = prepared.manifest.table, prepared.manifest.reading
    data = ImageDataset(prepared.manifest, table, SIDE)
    loaded = [np.rint(data[row]["image"].numpy() * 255).astype(np.uint8).transpose(1, 2, 0) for row in range(len(table))]
    study = SimpleNamespace(manifest=prepared.manifest, settings=SimpleNamespace(data=SimpleNamespace(image_size=SIDE)))
    checked = _pixels(study, table)
    recorder = Recorder(reading)
    predictions = predict_files(recorder, [(root / path, f"{row}") for row, path in enumerate(table["path"])], tmp_path / "out")
    assert (predictions["error"] == "").all() and len(recorder.shown) == len(table) == len(files) > 600
    for path, *pictures in zip(table["path"], loaded, checked, recorder.shown, strict=True):
        kind, orientation = files[path]
        assert (pictures[0] == pictures[1]).all() and (pictures[0] == pictures[2]).all(), kind.name
        difference = np.abs(pictures[0].astype(float) - kind.expected).max()
        assert difference <= kind.error, f"{kind.name}, orientation {orientation}: differs by {difference}"
    turned = sum(orientation > 1 for _, orientation in files.values())
    assert any(warning.startswith(f"{turned} image(s) are turned") for warning in prepared.warnings)
    assert any("have transparent pixels, which become white" in warning for warning in prepared.warnings)


def test_what_cannot_be_meant_is_refused_by_name(tmp_path):
    root, files = written(tmp_path, refused := [kind for kind in KINDS if kind.refused])
    with pytest.raises(ManifestError) as caught:
        prepare("nuclei", root, tmp_path / "set", max_value=MAX_VALUE, split="source", progress=False)
    recorder = Recorder(Reading(MAX_VALUE))
    predictions = predict_files(recorder, [(root / path, path) for path in files], tmp_path / "out").set_index("name")
    assert not recorder.shown and len(caught.value.problems) == len(files) > len(refused) > 10
    for (path, (kind, _)), problem in zip(sorted(files.items(), key=lambda item: item[0]), sorted(caught.value.problems), strict=True):
        for said, title in ((problem, path), (predictions.at[path, "error"], str(root / path))):
            assert said.startswith(f"{title}: "), said
            with pytest.raises(AssertionError, match=kind.refused):
                raise AssertionError(said)


def test_without_a_declaration_more_than_8_bits_are_refused(tmp_path):
    silent = [kind for kind in KINDS if kind.name in ("PNG 1x16", "PNG 3x16", "PNG 2x16", "PNG 4x16", "TIFF uint16 RGB strips")]
    assert len(silent) == 5
    for kind in silent:
        path = tmp_path / f"{kind.name}{kind.suffix}"
        kind.write(path, 1)
        with pytest.raises(ImageError, match=r"16 bits a channel, largest value \d+, and neither .* --max-value N"):
            decode_image(path)
