"""What pictures and masks mean, rule by rule (`data_manifests/README.md`); `test_formats` has them all together."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from vfmgl_lib.data import depth
from vfmgl_lib.data import images as module
from vfmgl_lib.data.images import ImageError, Reading, decode_image, decode_mask, image_size, read_image
from vfmgl_lib.data.inspection import inspect_files, remark_warnings
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.manifest_files import read_manifest, write_manifest
from vfmgl_lib.tasks import prepare as sources
from vfmgl_lib.tasks.prepare import prepare, read_prepared, verify
from vfmgl_lib.tools import predict
from vfmgl_lib.tools.data.__main__ import main

SHAPE = np.zeros((12, 16), bool)
SHAPE[2:7, 3:12] = True
BLACK_FIRST, WHITE_FIRST = [0, 0, 0, 255, 255, 255], [255, 255, 255, 0, 0, 0]


def saved(path, array, mode=None, palette=None, **options):
    image = Image.fromarray(np.asarray(array, None if mode else np.uint8))
    if palette:
        image = Image.fromarray(np.asarray(array, np.uint8), "P")
        image.putpalette(palette)
    image.save(path, **options)
    return path


def layer(shape, drawn, around=(0, 0, 0, 0)):
    return np.where(shape[..., None], np.array(drawn, np.uint8), np.array(around, np.uint8))


MASKS = {
    "0 and 1": (SHAPE * 1, {}),
    "0 and 255": (SHAPE * 255, {}),
    "RGB": (np.repeat(SHAPE[..., None], 3, axis=2) * 255, {}),
    "palette, black first": (SHAPE * 1, {"palette": BLACK_FIRST}),
    "palette, white first": (~SHAPE * 1, {"palette": WHITE_FIRST}),
    "palette, colour over black": (SHAPE * 1, {"palette": [0, 0, 0, 128, 0, 0]}),
    "palette, gray steps": (SHAPE * 255, {"palette": [value for value in range(256) for _ in range(3)]}),
    "palette, black twice": (np.where(SHAPE, 2, np.arange(16) % 2), {"palette": [0, 0, 0, 0, 0, 0, 255, 255, 255]}),
    "palette, background transparent": (SHAPE * 1, {"palette": BLACK_FIRST, "transparency": 0}),
    "palette, all white": (SHAPE * 1, {"palette": [255] * 6, "transparency": 0}),
    "layer, all white": (layer(SHAPE, (255, 255, 255, 255), (255, 255, 255, 0)), {}),
    "layer, white on nothing": (layer(SHAPE, (255, 255, 255, 255)), {}),
    "layer, half seen": (layer(SHAPE, (255, 255, 255, 128)), {}),
    "layer, white on black": (layer(SHAPE, (255, 255, 255, 255), (0, 0, 0, 255)), {}),
    "gray with alpha": (layer(SHAPE, (255, 255), (255, 0)), {}),
    "black transparent": (SHAPE * 255, {"transparency": 0}),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_read_as_they_are_seen(tmp_path, kind):
    array, options = MASKS[kind]
    assert (decode_mask(saved(tmp_path / "mask.png", array, **options)) == SHAPE).all()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("palette", [BLACK_FIRST, WHITE_FIRST])
def test_masks_of_one_colour(tmp_path, index, palette):
    path = saved(tmp_path / "mask.png", np.full((4, 4), index), palette=palette)
    assert (decode_mask(path) == palette[3 * index] // 255).all()


def test_a_layer_with_nothing_on_it_is_empty(tmp_path):
    assert not decode_mask(saved(tmp_path / "mask.png", np.zeros((4, 4, 4)))).any()
    assert not decode_mask(saved(tmp_path / "white.png", layer(np.zeros((4, 4), bool), (0, 0, 0, 0), (255, 255, 255, 0)))).any()


SOFT = layer(SHAPE, (255, 255, 255, 255))
SOFT[2, 3:12, 3], SOFT[6, 3:12, 3] = 90, 30
REFUSED_MASKS = {
    r"found values 0, 3; expected only 0 and 255": (SHAPE * 3, {}),
    r"found values 0, 1, 2; expected only": (np.where(SHAPE, 1, 0) + (np.arange(16) > 8), {}),
    r"its palette has 0: \(255, 0, 0\), 1: \(0, 0, 255\); expected black and white, or black as index 0": (
        SHAPE * 1,
        {"palette": [255, 0, 0, 0, 0, 255]},
    ),
    r"its palette has 0: \(255, 255, 255\), 1: \(9, 0, 0\)": (SHAPE * 1, {"palette": [255, 255, 255, 9, 0, 0]}),
    r"mask has indices 0, 1, which its palette makes one colour": (SHAPE * 1, {"palette": [0, 0, 0]}),
    r"mask has indices 3, 4, which its palette makes one colour": (SHAPE + 3, {"palette": [255] * 15}),
    r"partly transparent, alpha 0, 30, 90, 255; expected 0 and one other value": (SOFT, {}),
    r"no white pixel that is not transparent, but a shape": (layer(SHAPE, (0, 0, 0, 255), (255, 255, 255, 0)), {}),
    r"partly transparent, alpha 0; expected|no white pixel": (np.dstack([SHAPE * 255, SHAPE * 0]), {}),
    r"mask is coloured \(mode RGB\)": (layer(SHAPE, (255, 0, 0), (0, 0, 0)), {}),
}


@pytest.mark.parametrize("said", REFUSED_MASKS)
def test_masks_that_can_be_meant_otherwise_are_refused(tmp_path, said):
    array, options = REFUSED_MASKS[said]
    with pytest.raises(ImageError, match=rf"mask\.png: .*({said})"):
        decode_mask(saved(tmp_path / "mask.png", array, **options))


def test_a_tiffs_palette_in_8_bits(tmp_path):
    colors = np.zeros((3, 256), np.uint16)
    colors[:, 1] = 200, 100, 50
    tifffile.imwrite(tmp_path / "image.tif", SHAPE.astype(np.uint8), photometric="palette", colormap=colors)
    expected = np.asarray(decode_image(tmp_path / "image.tif"))
    assert (expected == SHAPE[..., None] * colors[:, 1]).all() and (decode_mask(tmp_path / "image.tif") == SHAPE).all()
    tifffile.imwrite(tmp_path / "image.tif", SHAPE.astype(np.uint8), photometric="palette", colormap=colors * 257)
    assert (np.asarray(decode_image(tmp_path / "image.tif")) == expected).all()


def test_masks_of_more_than_8_bits(tmp_path):
    for number, top in enumerate((1, 255, 65535)):
        path = saved(tmp_path / f"{number}.png", (SHAPE * top).astype(np.uint16), mode="I;16")
        assert (decode_mask(path) == SHAPE).all()
        tifffile.imwrite(path, np.repeat((SHAPE * top)[..., None], 3, axis=2).astype(np.uint16), photometric="rgb")
        assert (decode_mask(path) == SHAPE).all()
    tifffile.imwrite(tmp_path / "real.tif", (SHAPE * 255 - 2e-4).astype(np.float32))
    assert (decode_mask(tmp_path / "real.tif") == SHAPE).all()
    tifffile.imwrite(tmp_path / "real.tif", (SHAPE * 0.3).astype(np.float32))
    with pytest.raises(ImageError, match=r"real\.tif: mask is not binary, found 0\.3\d*, expected whole numbers .*, 0 and 255"):
        decode_mask(tmp_path / "real.tif")
    tifffile.imwrite(tmp_path / "inverted8.tif", SHAPE * np.uint8(255), photometric="miniswhite")
    with pytest.raises(ImageError, match=r"inverted8.tif: mask of 8 bits has 0 for white .*Invert LUT"):
        decode_mask(tmp_path / "inverted8.tif")
    Image.fromarray(~SHAPE).save(tmp_path / "scan.tif", tiffinfo={262: 0})  # one bit: black on white, by colour
    assert (decode_mask(tmp_path / "scan.tif") == ~SHAPE).all()
    tifffile.imwrite(tmp_path / "inverted.tif", (SHAPE * 255).astype(np.uint16), photometric="miniswhite")
    with pytest.raises(ImageError, match=r"inverted\.tif: mask of 16 bits has 0 for white"):
        decode_mask(tmp_path / "inverted.tif")


def test_jpeg_masks(tmp_path):
    blocks = np.kron(np.eye(2, dtype=np.uint8), np.ones((8, 8), np.uint8)) * 255
    assert (decode_mask(saved(tmp_path / "blocks.jpg", blocks, quality=100)) == blocks // 255).all(), "nothing was lost"
    with pytest.raises(ImageError, match=r"mask\.jpg: mask is not binary, .*; JPEG does not keep a mask's values, save it as PNG"):
        decode_mask(saved(tmp_path / "mask.jpg", SHAPE * 255))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_masks_are_turned_as_images_are(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    blocks = np.zeros((16, 24), np.uint8)
    blocks[:8, 16:] = 255
    path = saved(tmp_path / f"mask{suffix}", blocks, exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    assert (decode_mask(path) == np.rot90(blocks, -1) // 255).all()


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'


@pytest.mark.parametrize("orientation", [None, 1, 6])
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "deep.tif"])
def test_xmp_does_not_turn(tmp_path, kind, orientation):
    path, color, exif = tmp_path / f"image.{kind}", np.repeat(SHAPE[..., None] * 255, 3, axis=2).astype(np.uint8), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    if kind.endswith("tif"):
        tags = [(0x0112, "H", 1, orientation, True)] if orientation else []
        values = color if kind == "tif" else color.astype(np.uint16)
        tifffile.imwrite(path, values, photometric="rgb", extratags=[*tags, (700, "B", len(XMP), XMP, True)])
    elif kind == "png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode())
        Image.fromarray(color).save(path, pnginfo=text, exif=exif)
        assert np.asarray(decode_image(path)).shape == np.rot90(color, -1 if orientation == 6 else 0).shape
        content = path.read_bytes()
        start = content.index(b"iTXt") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4])
        path.write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])  # behind the pixels
    else:
        Image.fromarray(color).save(path, quality=100, subsampling=0, exif=exif, xmp=XMP)
    expected = np.rot90(color, -1 if orientation == 6 else 0)
    image, remarks = read_image(path, reading=Reading(255))
    assert image.size == image_size(path) == expected.shape[1::-1] and np.abs(np.asarray(image).astype(int) - expected).max() < 30
    assert ("turned" in remarks) == (orientation == 6)


def test_exif_in_text_of_a_png(tmp_path):
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n")
    assert decode_image(saved(tmp_path / "image.png", SHAPE * 255, pnginfo=text)).size == (12, 16), "as ImageMagick writes it"


def test_a_mask_across_its_image_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    saved(tmp_path / "image.jpg", np.zeros((12, 16, 3)), exif=exif)
    saved(tmp_path / "mask.png", SHAPE * 255)
    (found,) = inspect_files(tmp_path, ["image.jpg"], ["mask.png"])
    said = "mask.png: mask is 16x12, expected 12x16 as its image image.jpg; it lies across: masks are turned by their own orientation tag"
    assert len(found.problems) == 1 and found.problems[0].startswith(said)
    saved(tmp_path / "mask.png", SHAPE * 255, exif=exif)
    assert inspect_files(tmp_path, ["image.jpg"], ["mask.png"])[0].problems == ()


def test_broken_exif_says_nothing(tmp_path):
    path = saved(tmp_path / "image.jpg", np.zeros((12, 16, 3)), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09" + b"\xff" * 20)
    assert decode_image(path).size == (16, 12)


def test_transparent_pixels_lie_on_the_sets_background(tmp_path):
    path = saved(tmp_path / "tile.png", layer(SHAPE, (200, 100, 50, 255), (9, 9, 9, 0)))
    for reading, ground in ((module.PLAIN, 255), (Reading(background="black"), 0)):
        image, remarks = read_image(path, reading=reading)
        pixels = np.asarray(image)
        assert (pixels[SHAPE] == (200, 100, 50)).all() and (pixels[~SHAPE] == ground).all()
        assert remarks == ("transparent",)
    saved(path, layer(SHAPE, (200, 100, 50, 255), (9, 9, 9, 255)))
    assert read_image(path)[1] == () and (np.asarray(decode_image(path))[~SHAPE] == 9).all()


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_gray_and_alpha_in_tiff(tmp_path, kind, compression, planes):
    gray, alpha = np.full((16, 32), 200), np.repeat([255, 0], 16) * np.ones((16, 1), int)
    stored = np.array([gray * alpha // 255 if kind == "assocalpha" else gray, alpha], np.uint8)
    stored = stored if planes == "separate" else np.moveaxis(stored, 0, 2)
    rules = {"planarconfig": planes, "extrasamples": [kind], "compression": compression}
    tifffile.imwrite(tmp_path / "image.tif", stored, photometric="minisblack", metadata=None, **rules)
    assert (np.asarray(decode_image(tmp_path / "image.tif"))[..., 0] == np.where(alpha, 200, 255)).all()


@pytest.mark.parametrize("white", [1, 255])
def test_alpha_in_reals_ends_at_one(tmp_path, white):
    values = np.full((12, 16, 4), 0.5 * white, np.float32)
    values[..., 3] = np.where(SHAPE, 0, 1)
    tifffile.imwrite(tmp_path / "image.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    assert (np.asarray(decode_image(tmp_path / "image.tif", reading=Reading(white)))[..., 1] == np.where(SHAPE, 255, 128)).all()
    values[0, 0, 3] = np.nan
    tifffile.imwrite(tmp_path / "image.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(ImageError, match=r"image\.tif: 1 values are NaN"):
        decode_image(tmp_path / "image.tif", reading=Reading(white))


def test_a_picture_that_nobody_can_see_is_refused(tmp_path):
    saved(tmp_path / "image.png", layer(SHAPE, (200, 100, 50, 0), (9, 9, 9, 0)))
    with pytest.raises(ImageError, match=r"image\.png: all of it is transparent, but it has colours; expected"):
        decode_image(tmp_path / "image.png")
    saved(tmp_path / "outside.png", np.zeros((4, 4, 4)))
    assert (np.asarray(decode_image(tmp_path / "outside.png")) == 255).all(), "a tile beside the scan"


def test_colour_profiles_are_left_alone_and_said(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    ours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile, remarks in ((other, ("profile",)), (ours, ()), (None, ())):
        image, found = read_image(saved(tmp_path / "image.png", pixels, icc_profile=profile))
        assert (np.asarray(image) == pixels).all() and found == remarks


def test_8_bits_stay_as_they_are_whatever_is_declared(tmp_path):
    pixels = np.arange(192, dtype=np.uint8).reshape(12, 16)
    path = saved(tmp_path / "image.png", pixels)
    assert (np.asarray(decode_image(path, reading=Reading(max_value=4095)))[..., 0] == pixels).all()
    tifffile.imwrite(tmp_path / "image.tif", pixels, extratags=[(281, "H", 1, 191, True)])
    assert (np.asarray(decode_image(tmp_path / "image.tif"))[..., 0] == pixels).all()


@pytest.mark.parametrize("step", ["shift", "repeat", "scale"])
def test_dark_values_of_sbit_may_be_spread(step):
    measured = np.arange(12 * 16).reshape(12, 16)  # of 4095
    spread = {"shift": measured << 4, "repeat": measured << 4 | measured >> 8, "scale": np.round(measured * 65535 / 4095).astype(int)}[step]
    said = "its sBIT chunk (12 bits) may mean 4095 or 65535"
    assert depth._white_by_bits(spread, 12) == (None, said)
    assert depth._white_by_bits(spread + 5000, 12)[0] == 65535 and depth._white_by_bits(measured, 12)[0] == 4095
    with pytest.raises(ImageError, match=r"value is white \(its sBIT chunk \(12 bits\) may mean 4095 or 65535\); prepare the set with"):
        module._scaled(depth.Samples(spread, 16, declared=said), "F", None)
    assert np.asarray(module._scaled(depth.Samples(spread, 16, declared=said), "F", 65535)[0]).max() == 12


def test_reals_up_to_one_in_a_set_of_whole_numbers(tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", np.where(SHAPE, 0.9, 0).astype(np.float32))
    with pytest.raises(ImageError, match=r"image\.tif: real values up to 0\.9, expected up to 4095 as --max-value says: all of it would"):
        decode_image(tmp_path / "image.tif", reading=Reading(4095))
    tifffile.imwrite(tmp_path / "image.tif", np.zeros((4, 4), np.float32))
    assert not np.asarray(decode_image(tmp_path / "image.tif", reading=Reading(4095))).any(), "nothing but black"


def test_a_phones_jpeg_is_its_first_picture(tmp_path):
    saved(tmp_path / "image.jpg", SHAPE * 255, format="MPO", save_all=True, append_images=[Image.new("L", (4, 4))])
    assert image_size(tmp_path / "image.jpg") == decode_image(tmp_path / "image.jpg").size == (16, 12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_whose_end_is_zeros(tmp_path, dtype):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 400)).astype(dtype)).save(path)
    decode_image(path, reading=Reading(255))
    path.write_bytes(path.read_bytes()[:-3000] + bytes(3000))
    for read in (decode_image, decode_mask, image_size):
        with pytest.raises(ImageError, match=r"image\.png: cannot be decoded .*checksum in b'IDAT'"):
            read(path)


def test_a_tag_that_may_be_the_pictures_own_largest_value_declares_nothing(tmp_path):
    pixels = np.linspace(0, 3000, 192).astype(np.uint16).reshape(12, 16)
    tifffile.imwrite(tmp_path / "image.tif", pixels, extratags=[(281, "H", 1, 3000, True)])
    with pytest.raises(ImageError, match=r"16 bits a channel, largest value 3000, and neither .* e\.g\. 4095 or 16383 or 65535"):
        decode_image(tmp_path / "image.tif")
    assert np.asarray(decode_image(tmp_path / "image.tif", reading=Reading(4095))).max() == round(3000 / 4095 * 255)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiffs_whose_samples_lie_without_gaps(tmp_path, bits, channels):
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 7, channels))
    packed = [np.packbits((line.reshape(-1, 1) >> np.arange(bits)[::-1]) & 1) for line in values]
    tifffile.imwrite(tmp_path / "image.tif", np.concatenate(packed)[None], metadata=None)
    with tifffile.TiffFile(tmp_path / "image.tif", mode="r+b") as file:
        tags = file.pages[0].tags
        for name, value in (("ImageWidth", 7), ("ImageLength", 5), ("RowsPerStrip", 5), ("SamplesPerPixel", channels)):
            tags[name].overwrite(value)
        tags["PhotometricInterpretation"].overwrite(2 if channels == 3 else 1)
        tags["BitsPerSample"].overwrite([bits] * channels)
    found = np.asarray(decode_image(tmp_path / "image.tif"))
    assert np.abs(found - values / (2**bits - 1) * 255).max() <= 0.5


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"compression": "zlib"}])
def test_a_deep_tiff_cut_short_is_refused(tmp_path, layout):
    path = tmp_path / "image.tif"
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64, 3)).astype(np.uint16)
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, **layout)
    whole = path.read_bytes()
    decode_image(path, reading=Reading(4095))
    for share in (0.05, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match=r"image\.tif: .*(damaged|cut short|not a readable image)"):
            decode_image(path, reading=Reading(4095))


def test_a_header_that_claims_too_much_is_refused_before_decoding(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "image.tif", np.zeros((30, 40), np.float64))
    for limit, said in ((1000, "40x30 pixels, the limit is 1000 pixels"), (10**6, "40x30 pixels in 9600 bytes, the limit is 9000 bytes")):
        monkeypatch.setattr(module, "PIXEL_LIMIT", limit)
        monkeypatch.setattr("vfmgl_lib.data.depth.BYTE_LIMIT", 9000)
        monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("decoded"))
        with pytest.raises(ImageError, match=said):
            decode_image(tmp_path / "image.tif")


@pytest.mark.parametrize("wrong", [{"max_value": 0}, {"max_value": float("nan")}, {"background": "grey"}])
def test_what_a_reading_cannot_say(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Reading(**wrong)


def test_remarks_are_counted():
    found = [("a", ("scaled", "turned")), ("b", ()), ("c", ("turned", "transparent", "profile"))]
    lines = remark_warnings(found, Reading(background="black"))
    assert [line.split(" image(s) ")[0] for line in lines] == ["1", "2", "1", "1"]
    assert lines[0] == "1 image(s) have transparent pixels, which become black, e.g. c" and lines[1].endswith(", e.g. a")


@pytest.fixture
def deep_set(tmp_path):
    """A source of `nuclei` with 12-bit pictures in 16-bit PNGs that do not say so."""
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for part in ("images", "labels"):
            (tmp_path / "source/SiteA" / split / part).mkdir(parents=True)
        values = generator.integers(0, 4000, (12, 16)).astype(np.uint16)
        saved(tmp_path / "source/SiteA" / split / "images" / f"{split}_1.png", values, mode="I;16")
        saved(tmp_path / "source/SiteA" / split / "labels" / f"{split}_1.png", SHAPE * 255)
    return tmp_path / "source"


def test_the_largest_value_stays_with_the_set(deep_set, tmp_path, capsys):
    out = tmp_path / "set"
    call = ["prepare", "nuclei", "--source", str(deep_set), "--out", str(out)]
    assert main(call) == 1 and "--max-value N, e.g. 4095 or" in capsys.readouterr().err
    assert main([*call, "--max-value", "4095"]) == 0
    assert "note: 3 image(s) have more than 8 bits a channel and are scaled to 8" in capsys.readouterr().out
    manifest = read_prepared(out).manifest
    assert manifest.reading == Reading(4095) and verify(out, progress=False)
    copy = read_manifest(out / "manifest.csv", manifest.root)
    assert copy.reading == manifest.reading and copy.sha256 == manifest.sha256
    assert main([*call, "--max-value", "4095"]) == 0 and "complete already" in capsys.readouterr().out
    assert main([*call, "--max-value", "65535"]) == 1
    assert "max_value 4095.0 instead of 65535.0; choose another folder" in capsys.readouterr().err
    other = prepare("nuclei", deep_set, tmp_path / "other", max_value=65535, progress=False).manifest
    assert (other.table["sha256"] == manifest.table["sha256"]).all() and other.sha256 != manifest.sha256
    with pytest.raises(SystemExit):
        main([*call, "--max-value", "-3"])
    assert "argument --max-value: '-3' is no number above 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="max_value must be above 0, got 0"):
        prepare("nuclei", deep_set, tmp_path / "third", max_value=0, progress=False)


def test_a_manifest_whose_reading_is_none(deep_set, tmp_path):
    prepare("nuclei", deep_set, tmp_path / "set", max_value=4095, progress=False)
    notes = tmp_path / "set" / "manifest.json"
    for wrong in ('"white"', '{"max_value": -1}', '{"colour": 3}', '{"max_value": "much"}'):
        text = notes.read_text()
        start, end = text.index('"reading"'), text.index("}", text.index('"reading"')) + 1
        notes.write_text(f'{text[:start]}"reading": {wrong}{text[end:]}')
        with pytest.raises(ManifestError, match=r"manifest\.json: reading is "):
            read_manifest(tmp_path / "set" / "manifest.csv", deep_set)
        notes.write_text(text)


def test_old_models_of_radiology_have_a_black_background():
    about = predict.Description(
        predict.FORMAT,
        "0.1.0",
        "nuclei",
        "segmentation",
        ("a", "b"),
        8,
        ("image",),
        predict.PREPROCESSING,
        "image",
        None,
        "",
        {},
        "",
        "",
        "",
        (),
    )
    old = {key: value for key, value in vars(about).items() if key != "reading"}
    for task, background in (("nuclei", "white"), ("camelyon17", "white"), ("endometrial", "black"), ("prostate", "black")):
        found = predict.Description.from_json(json.dumps(old | {"task": task}), "model.onnx")
        assert found.reading == Reading(None, background)


def test_old_sets_of_radiology_have_a_black_background(tmp_path):
    for number, (split, kind) in enumerate((s, k) for s in ("traindata", "testdata") for k in ("0_NMI", "1_MI")):
        (folder := tmp_path / "source/A" / split / kind / f"P{number}").mkdir(parents=True)
        saved(folder / "1.png", layer(SHAPE, (9 * number, 8, 7, 255)))
    new = prepare("endometrial", tmp_path / "source", tmp_path / "set", progress=False).manifest
    notes = json.loads((tmp_path / "set/manifest.json").read_text())
    assert notes.pop("reading") == {"max_value": None, "background": "black"}
    (tmp_path / "set/manifest.json").write_text(json.dumps(notes))
    assert read_prepared(tmp_path / "set").manifest.reading == new.reading == Reading(background="black")
    assert read_manifest(tmp_path / "set/manifest.csv", tmp_path).reading == Reading()
    for background in ("white", "black"):  # what is written is read, whatever a set of 0.1.0 would have had
        write_manifest(replace(new, reading=Reading(background=background)), tmp_path / "m.csv")
        assert read_manifest(tmp_path / "m.csv", tmp_path, Reading(background="black")).reading.background == background


def test_another_background_reads_a_set_anew(tmp_path, monkeypatch):
    for number, (split, kind) in enumerate((s, k) for s in ("traindata", "testdata") for k in ("0_NMI", "1_MI")):
        (folder := tmp_path / "source/A" / split / kind / f"P{number}").mkdir(parents=True)
        saved(folder / "1.png", layer(SHAPE, (9 * number, 8, 7, 255)))
    make = partial(prepare, "endometrial", tmp_path / "source", tmp_path / "set", progress=False)
    assert not make().reused and make().reused
    sheet = sources.datasheet_of("endometrial")
    monkeypatch.setattr(sources, "datasheet_of", lambda task: sheet.model_copy(update={"transparent": "white"}))
    again = make()
    assert not again.reused and again.manifest.reading.background == "white" and make().reused


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_the_size_is_that_of_the_turned_picture(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / f"image{suffix}", SHAPE * 255, exif=exif)
    assert image_size(path) == decode_image(path).size == (12, 16)
    if suffix == ".tif":  # one that Pillow knows, one that it does not
        for kind in (np.uint16, np.float64):
            tifffile.imwrite(path, SHAPE.astype(kind), extratags=[(274, "H", 1, 6, True)])
            assert image_size(path) == decode_image(path, reading=Reading(1)).size == (12, 16)
