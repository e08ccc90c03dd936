"""DICOM series: padding, inversion, bits, names, transfer syntaxes; the files are written here, byte by byte."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vfmgl_lib.data.dicom import has_picture, is_dicom, read_series
from vfmgl_lib.data.preprocessing import to_bytes
from vfmgl_lib.data.scan import SourceError
from vfmgl_lib.tasks.cases import Findings
from vfmgl_lib.tasks.endometrial.reader import cases_volumes, recognise_volumes

MR, EXPLICIT, DEFLATED, BIG, RLE = (f"1.2.840.10008.{end}" for end in ("5.1.4.1.1.4", "1.2.1", "1.2.1.99", "1.2.2", "1.2.5"))
PHOTOMETRIC, PADDING, LIMIT, INTERCEPT, SLOPE = 0x00280004, 0x00280120, 0x00280121, 0x00281052, 0x00281053


def element(tag, kind, value, order="<", implicit=False):
    content = value.encode() if isinstance(value, str) else struct.pack(f"{order}H", value) if isinstance(value, int) else value
    content += (b"\0" if kind == "UI" else b" ") * (len(content) % 2)
    start = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return start + struct.pack("<I", len(content)) + content
    long = kind in ("OB", "OW", "SQ")
    return start + kind.encode() + struct.pack(f"{order}HI" if long else f"{order}H", *((0,) if long else ()), len(content)) + content


def write_slice(path, pixels, z=0.0, *, photometric="MONOCHROME2", allocated=16, bits=12, signed=0, syntax=EXPLICIT, sop=MR, more=(),
                without=(), packed=None, preamble=True):  # fmt: skip
    """A file of one slice; `more` and `without` are elements and tags, `packed` is a compressed stream, no preamble means implicit VR."""
    order = ">" if syntax == BIG else "<"
    items = {0x00080016: ("UI", sop), 0x00080018: ("UI", f"1.2.3.{abs(hash(path.name)) % 10**8}"), 0x00080060: ("CS", "MR")}
    items |= {0x00100010: ("PN", "A^B"), 0x00100020: ("LO", "77"), 0x0020000D: ("UI", "1.2.9"), 0x0020000E: ("UI", "1.2.9.1")}
    items |= {
        0x00200032: ("DS", f"0\\0\\{z}"),
        0x00200037: ("DS", "1\\0\\0\\0\\1\\0"),
        0x00280002: ("US", 1),
        PHOTOMETRIC: ("CS", photometric),
    }
    items |= {0x00280010: ("US", pixels.shape[0]), 0x00280011: ("US", pixels.shape[1]), 0x00280030: ("DS", "0.5\\0.7")}
    items |= {0x00280100: ("US", allocated), 0x00280101: ("US", bits), 0x00280102: ("US", bits - 1), 0x00280103: ("US", signed)}
    items |= {tag: value for tag, *value in more}
    body = b"".join(element(tag, *items[tag], order, not preamble) for tag in sorted(items) if tag not in without)
    if packed is None:
        raw = (pixels.astype(np.int64) & (2**allocated - 1)).astype(f"{order}u{allocated // 8}").tobytes()
        body += element(0x7FE00010, "OB" if allocated == 8 else "OW", raw, order, not preamble)
    else:
        packed += b"\0" * (len(packed) % 2)
        body += struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
        body += struct.pack("<HHI", 0xFFFE, 0xE000, len(packed)) + packed + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-15)
        body = packer.compress(body) + packer.flush()
    if preamble:
        meta = element(0x00020001, "OB", b"\0\1") + element(0x00020002, "UI", sop) + element(0x00020010, "UI", syntax)
        body = bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta + body
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def stack(seed=0, low=0, high=4096, shape=(4, 12, 10)):
    return np.random.default_rng(seed).integers(low, high, shape)


def series(folder, values, suffix=".dcm", **options):
    for number, image in enumerate(values):
        write_slice(folder / f"im{number}{suffix}", image, 4.0 * number, **options)
    return read_series(tuple(sorted(folder.iterdir())), "P1")


def ss(tag, value):
    return tag, "SS", struct.pack("<h", value)


@pytest.mark.parametrize(
    ("options", "lowest", "padding"),
    [
        ({"bits": 16, "signed": 1, "more": (ss(PADDING, -32768),)}, 0, (-32768,)),
        ({"bits": 16, "signed": 1, "more": (ss(PADDING, -2000), ss(LIMIT, -1990))}, 0, (-2000, -1995, -1990)),
        ({"bits": 16, "signed": 1, "more": (ss(PADDING, -1990), ss(LIMIT, -2000))}, 0, (-2000, -1995, -1990)),
        ({"bits": 16, "signed": 1, "more": ((PADDING, "US", 63536),)}, 0, (-2000,)),  # written as unsigned: the bits count
        ({"bits": 16, "more": (ss(PADDING, -2000),)}, 0, (63536,)),
        ({"bits": 12, "signed": 1, "more": (ss(PADDING, -32768),)}, -500, (-32768,)),  # above the bits stored
        ({"bits": 12, "more": ((PADDING, "US", 63536), )}, 0, (63536,)),
        ({"bits": 12, "more": ((PADDING, "US", 63536), ), "syntax": BIG}, 0, (63536,)),
        ({"bits": 12, "more": ((PADDING, "US", 63536), ), "photometric": "MONOCHROME1"}, 0, (63536,)),
        ({"bits": 12, "signed": 1, "more": (ss(PADDING, -2048), ), "photometric": "MONOCHROME1"}, -500, (-2048,)),
        ({"bits": 16, "signed": 1, "more": (ss(PADDING, -32768), (INTERCEPT, "DS", "-3.5"), (SLOPE, "DS", "0.37"))}, 0, (-32768,)),
        ({"bits": 16, "signed": 1, "more": (ss(PADDING, -32768),), "preamble": False}, 0, (-32768,)),
    ],
)  # fmt: skip
def test_padding_is_no_tissue(options, lowest, padding, tmp_path):
    values = stack(low=lowest, high=1500)
    corner = np.zeros(values.shape, bool)
    corner[:, :5, :4] = True
    clean = series(tmp_path / "clean", values, **{**options, "more": options["more"][len(padding) - (len(padding) > 1) :]})
    stored = np.where(corner, np.resize(padding, values.shape), values)
    found = series(tmp_path / "padded", stored, **options)
    assert np.array_equal(found.tissue, ~corner)
    assert np.array_equal(found.values[~corner], clean.values[~corner])
    assert (found.values[corner] == clean.values[~corner].min()).all()
    scaled = to_bytes(found.values, found.tissue)
    assert (scaled[corner] == 0).all()
    assert np.array_equal(scaled[~corner], to_bytes(clean.values[~corner]))


def test_padding_may_differ_from_slice_to_slice(tmp_path):
    values = stack(high=900)
    values[:, 0] = 0
    for number, image in enumerate(values):
        image[0] = number
        write_slice(tmp_path / f"{number}", image, 4.0 * number, more=((PADDING, "US", number),) if number else ())
    found = read_series(tuple(tmp_path.iterdir()), "P1")
    assert not found.tissue[1:, 0].any() and found.tissue[0].all()


def test_a_padding_value_that_no_pixel_has_changes_nothing(tmp_path):
    values = stack()
    found = series(tmp_path, values, more=((PADDING, "US", 63536),))
    assert found.tissue is None and np.array_equal(found.values, values)


def test_nothing_but_padding(tmp_path):
    with pytest.raises(SourceError, match=r"P1: all pixels have the PixelPaddingValue \(0028,0120\), expected tissue"):
        series(tmp_path, np.zeros((3, 4, 4)), more=((PADDING, "US", 0),))


@pytest.mark.parametrize(("allocated", "bits"), [(8, 7), (8, 8), (16, 10), (16, 12), (16, 15), (16, 16), (32, 20)])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("syntax", [EXPLICIT, BIG, DEFLATED])
def test_monochrome1_is_inverted_once(allocated, bits, signed, syntax, tmp_path):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    if (allocated, syntax) == (32, BIG):
        with pytest.raises(SourceError, match=r"P1/im0.dcm: 32 bits a pixel in Explicit VR Big Endian"):
            series(tmp_path, stack(), allocated=32, bits=bits, syntax=BIG)
        return
    values, options = stack(low=low, high=high), {"allocated": allocated, "bits": bits, "signed": signed, "syntax": syntax}
    assert np.array_equal(series(tmp_path / "2", values, **options).values, values)
    assert np.array_equal(series(tmp_path / "1", values, photometric="MONOCHROME1", **options).values, low + high - 1 - values)


def test_monochrome1_is_inverted_before_slope_and_intercept(tmp_path):
    values = stack()
    found = series(tmp_path, values, photometric="MONOCHROME1", more=((INTERCEPT, "DS", "-3"), (SLOPE, "DS", "0.25")))
    assert np.array_equal(found.values, (4095 - values) * 0.25 - 3)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_what_lies_above_the_stored_bits_is_cut_off(signed, photometric, tmp_path):
    """An old overlay or rubbish in the four high bits; the sign is the highest stored bit."""
    values = stack(low=-2048 * signed, high=2048)
    rubbish = (values & 0xFFF) | (stack(1, high=16) << 12)
    found = series(tmp_path, rubbish, signed=signed, photometric=photometric)
    assert np.array_equal(found.values, values if photometric == "MONOCHROME2" else (-1 if signed else 4095) - values)


@pytest.mark.parametrize("without", [(0x00280103,), (0x00280102,), (PHOTOMETRIC,), (0x00280002,)])
def test_missing_tags_have_their_usual_value(without, tmp_path):
    values = stack()
    assert np.array_equal(series(tmp_path, values, without=without).values, values)


def test_without_preamble_and_with_other_syntaxes(tmp_path):
    values = stack(high=4000)
    for name, options in {"implicit": {"preamble": False}, "big": {"syntax": BIG}, "deflated": {"syntax": DEFLATED}}.items():
        assert np.array_equal(series(tmp_path / name, values, **options).values, values), name
        assert all(is_dicom(path) for path in (tmp_path / name).iterdir())


def rle(image):
    """PackBits of literal runs, high bytes first."""
    parts = [b"".join(bytes([len(row) - 1]) + row.tobytes() for row in plane.astype(np.uint8)) for plane in (image >> 8, image & 255)]
    parts = [part + b"\0" * (len(part) % 2) for part in parts]
    return struct.pack("<16I", 2, 64, 64 + len(parts[0]), *[0] * 13) + b"".join(parts)


def jpeg2000(image):
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint16)).save(buffer, "JPEG2000", no_jp2=True)
    return buffer.getvalue()


@pytest.mark.parametrize(("syntax", "pack"), [(RLE, rle), ("1.2.840.10008.1.2.4.90", jpeg2000)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_compressed_slices(syntax, pack, photometric, tmp_path):
    values = stack(shape=(3, 64, 64))
    for number, image in enumerate(values):
        packed = pack(image)
        write_slice(tmp_path / f"{number}", image, 4.0 * number, bits=16, syntax=syntax, packed=packed, photometric=photometric)
    found = read_series(tuple(tmp_path.iterdir()), "P1").values
    assert np.array_equal(found, values if photometric == "MONOCHROME2" else 65535 - values)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"),
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000 Image Compression (Lossless Only)"),
        ("1.2.840.10008.1.2.4.70", "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])"),
        ("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level"),
        ("1.2.3.4.5", "unknown"),
    ],
)
def test_what_cannot_be_decoded_names_its_transfer_syntax(syntax, name, tmp_path):
    write_slice(tmp_path / "a", stack()[0], 0.0, bits=16, syntax=syntax, packed=b"\xff\x0a no picture of any kind" * 9)
    said = rf"is {re.escape(name)}, {syntax}; transcode it .*gdcmconv --raw, dcmdjpeg"
    message = rf"^P1/a: cannot be decoded, its transfer syntax \(0002,0010\) {said}"
    with pytest.raises(SourceError, match=message) as caught:
        read_series((tmp_path / "a",), "P1")
    assert "\n" not in str(caught.value)


PALETTE = tuple((tag, "US", struct.pack("<3H", 256, 0, 16)) for tag in (0x00281101, 0x00281102, 0x00281103))
PALETTE += tuple((tag, "OW", np.arange(256, dtype="<u2").tobytes()) for tag in (0x00281201, 0x00281202, 0x00281203))
BAD = {
    "comma": (
        {"more": ((INTERCEPT, "DS", "0"), (SLOPE, "DS", "0,5"))},
        r"P1/im0.dcm: RescaleSlope \(0028,1053\) is '0,5', expected one number",
    ),
    "not a number": (
        {"more": ((INTERCEPT, "DS", "nan"), (SLOPE, "DS", "1"))},
        r"RescaleIntercept \(0028,1052\) is 'nan', expected one number",
    ),
    "high bit": ({"more": ((0x00280102, "US", 15),)}, r"HighBit \(0028,0102\) is 15 of 12 bits stored, expected 11; transcode"),
    "bits": ({"bits": 17}, r"P1/im0.dcm: BitsStored \(0028,0101\) is '17', expected one number from 1 to 16"),
    "no bits": ({"more": ((0x00280100, "US", 0),)}, r"P1/im0.dcm: BitsAllocated \(0028,0100\) is '0', expected one number from 1 to 64"),
    "unknown kind": ({"more": ((0x00280004, "CS", "MONNCHROME2"),)}, r"P1/im0.dcm: is a colour image \(MONNCHROME2\)"),
    "rows": ({"more": ((0x00280010, "US", 13),)}, "P1/im0.dcm: holds fewer than 13 x 10 pixels, the file is damaged or cut short"),
    "many rows": ({"more": ((0x00280010, "US", 60000),)}, "P1/im0.dcm: holds fewer than 60000 x 10 pixels"),
    "palette": ({"photometric": "PALETTE COLOR", "allocated": 8, "bits": 8, "more": PALETTE}, "P1/im0.dcm: is a colour image"),
    "no plane": ({"more": ((0x00200037, "DS", "0\\0\\0\\0\\0\\0"),)}, r"im0.dcm: gives no image position and orientation"),
    "parallel": ({"more": ((0x00200037, "DS", "1\\0\\0\\1\\0\\0"),)}, r"im0.dcm: gives no image position and orientation"),
    "micrometres": ({"more": ((0x00280030, "DS", "500\\700"),)}, r"PixelSpacing \(0028,0030\) is 500\\700 mm, expected 0.01 to 100 mm"),
    "frames": ({"more": ((0x00280008, "IS", "4"),)}, r"P1/im0.dcm: holds 4 frames \(enhanced DICOM\), expected one image a file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_unusable_series(kind, tmp_path):
    options, message = BAD[kind]
    with pytest.raises(SourceError, match=message) as caught:
        series(tmp_path, stack(high=200), **options)
    assert "\n" not in str(caught.value)


def test_a_tilted_stack_keeps_its_slices(tmp_path):
    """A tilted gantry shifts each slice within its plane: the slices lie one above the other by their distance along the normal."""
    values = stack()
    for number, image in enumerate(values):
        write_slice(tmp_path / f"{9 - number}", image, more=((0x00200032, "DS", f"0\\{1.2 * number}\\{4 * number}"),))
    assert np.array_equal(read_series(tuple(tmp_path.iterdir()), "P1").values, values)


def hospital(root, suffix, name="1.2.840"):
    """One patient whose files end in `suffix`."""
    for number, image in enumerate(stack(high=900)):
        write_slice(root / f"A/traindata/1_MI/P1/{name}.{number}{suffix}", image, 4.0 * number)
    (root / "roi.csv").write_text("patient,slice,row_start,row_stop,column_start,column_stop\nP1,1,0,12,0,10\n")
    return root / "A/traindata/1_MI/P1"


@pytest.mark.parametrize("suffix", [".IMA", ".ima", ".dcm", ".DCM", "", ".MR", ".img", ".dic", ".T2"])
def test_any_suffix_will_do(suffix, tmp_path):
    hospital(tmp_path, suffix)
    findings = Findings()
    (case,) = cases_volumes(tmp_path, findings)
    assert findings == Findings() and len(case.read()) == 1
    (tmp_path / "roi.csv").unlink()
    assert recognise_volumes(tmp_path)


def test_objects_without_a_picture_are_left_out_and_counted(tmp_path):
    folder = hospital(tmp_path, "")
    classes = ("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.88.59", "1.3.46.670589.11.0.0.12.2")
    for number, sop in enumerate(classes):
        write_slice(folder / f"XX_{number}", stack()[0], 4.0, sop=sop)
        assert not has_picture(folder / f"XX_{number}")
    write_slice(folder.parent / "IM", stack()[0], sop="1.2.840.10008.5.1.4.1.1.110")
    assert has_picture(folder.parent / "IM")
    (folder.parent / "IM").unlink()
    findings = Findings()
    (case,) = cases_volumes(tmp_path, findings)
    assert findings.problems == [] and len(case.read()) == 1
    assert findings.warnings == ["4 DICOM files without a picture (reports, presentation states, raw data) left out"]


def test_files_are_known_by_their_content(tmp_path):
    folder = hospital(tmp_path, ".IMA")
    for name, content in (("a.txt", b"12"), ("b.IMA", b"no image" * 40), ("c.xml", b"<" * 200)):
        (folder / name).write_bytes(content)
        assert not is_dicom(folder / name)
    findings = Findings()
    cases_volumes(tmp_path, findings)
    expected = "expected one DICOM series or one .nii or .nii.gz"
    assert findings.problems == [f"A/traindata/1_MI/P1/{name}: unexpected file, {expected}" for name in ("a.txt", "c.xml")]
    for name in ("a.txt", "c.xml"):
        (folder / name).unlink()
    (case,) = cases_volumes(tmp_path, Findings())
    with pytest.raises(SourceError, match=r"P1/b.IMA: is no readable DICOM image"):
        case.read()
    assert not is_dicom(folder / "nowhere")


@pytest.mark.parametrize("place", [b"\x10\x00\x10\x00PN\x04\x00", b"\x20\x00\x0d\x00UI\x06\x00"])
def test_a_length_beyond_the_file_costs_no_memory(place, tmp_path):
    """GDCM would reserve what a damaged length claims, up to 4 GiB."""
    write_slice(tmp_path / "a", stack()[0])
    content = (tmp_path / "a").read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _peak()
    for kind in (b"OB\0\0\xf0\xff\xff\x7f", b"\xff\xff\xff\x7f", b"UI\xff\xff"):
        (tmp_path / "a").write_bytes(content.replace(place, place[:4] + kind))
        with pytest.raises(SourceError, match="P1/a: is no readable DICOM image"):
            read_series((tmp_path / "a",), "P1")
    assert _peak() - before < 200_000


def _peak() -> int:
    """The most memory that this process held at once, in kB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))[1])


def test_sequences_and_unknown_types_are_walked_through(tmp_path):
    """What a scanner writes besides: nested sequences of either length, types of two letters that nobody knows, a trailing filler."""
    inner = element(0x00080100, "SH", "A") + element(0x00080104, "LO", "B ")
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    open_item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    values = stack()
    for number, image in enumerate(values):
        path = tmp_path / f"{number}"
        write_slice(path, image, 4.0 * number, more=((0x00082112, "SQ", item + open_item), (0x00191010, "OX", b"1234")))
        filler = element(0xFFFCFFFC, "OB", bytes(20))
        undefined = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        content = path.read_bytes().replace(element(0x00100010, "PN", "A^B"), undefined + element(0x00100010, "PN", "A^B"))
        path.write_bytes(content.replace(b"\x19\x00\x10\x10OX\x04\0", b"\x19\x00\x10\x10OX\0\0\x04\0\0\0") + filler)
    assert np.array_equal(read_series(tuple(tmp_path.iterdir()), "P1").values, values)


def test_a_deflated_file_is_unpacked_no_further_than_a_slice_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("vfmgl_lib.data.dicom.SLICE_LIMIT", 200)
    values = stack()
    assert np.array_equal(series(tmp_path / "small", values, syntax=DEFLATED).values, values)
    with pytest.raises(SourceError, match=r"P1/im0.dcm: is no readable DICOM image"):
        series(tmp_path / "large", values, syntax=DEFLATED, more=((0x00191010, "OB", bytes(5000)),))


def test_bytes_that_are_no_element_are_refused(tmp_path):
    """Where some are put into the pixels, all behind them are shifted, and the last ones lie behind PixelData."""
    write_slice(tmp_path / "a", stack()[0])
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-50] + b"1234" + content[-50:])
    with pytest.raises(SourceError, match="P1/a: is no readable DICOM image"):
        read_series((tmp_path / "a",), "P1")


def test_large_numbers_keep_their_last_digit_until_they_are_scaled(tmp_path):
    values = stack(low=2**31 - 4096, high=2**31)
    found = series(tmp_path, values, allocated=32, bits=32, more=((INTERCEPT, "DS", str(4096 - 2**31)), (SLOPE, "DS", "1")))
    assert np.array_equal(found.values, values + 4096 - 2**31)
