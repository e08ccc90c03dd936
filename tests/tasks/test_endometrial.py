"""Endometrial volumes: DICOM series and NIfTI with their regions, and each kind of bad input; the files are written here."""

import gzip
import pickle
import struct
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from vfmgl_lib.data.dicom import read_series
from vfmgl_lib.tasks.cases import Findings, SourceError
from vfmgl_lib.tasks.endometrial.reader import FORMATS, cases_volumes, radiological, recognise_volumes
from vfmgl_lib.tasks.prepare import prepare

MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
HEADER = "patient,slice,row_start,row_stop,column_start,column_stop"


def element(tag: int, kind: str, value: str | int | bytes) -> bytes:
    """One DICOM data element, explicit little endian."""
    content = value.encode() if isinstance(value, str) else struct.pack("<H", value) if isinstance(value, int) else value
    content += (b"\0" if kind == "UI" else b" ") * (len(content) % 2)
    length = struct.pack("<HI", 0, len(content)) if kind in ("OB", "OW") else struct.pack("<H", len(content))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode() + length + content


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    height: float = 0.0,
    *,
    series: str = "1.2.3.4",
    person: tuple[str | bytes, str] = ("Doe^Jane", "0815"),
    orientation: str = "1\\0\\0\\0\\1\\0",
    position: str | None = None,
    photometric: str = "MONOCHROME2",
    slope: str = "",
    frames: int = 0,
    kind: str = MR,
) -> None:
    """A file of 12 bits; spacing 0.5 mm between rows, 0.7 mm between columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    uid = f"1.2.3.5.{abs(hash((path.name, height))) % 10**9}"
    meta = element(0x00020002, "UI", kind) + element(0x00020003, "UI", uid) + element(0x00020010, "UI", "1.2.840.10008.1.2.1")
    data = element(0x00080016, "UI", kind) + element(0x00080018, "UI", uid) + element(0x00080020, "DA", "20190416")
    data += element(0x00080060, "CS", "MR") + element(0x00100010, "PN", person[0]) + element(0x00100020, "LO", person[1])
    data += element(0x0020000D, "UI", "1.2.3") + element(0x0020000E, "UI", series)
    data += element(0x00200032, "DS", f"0\\0\\{height}" if position is None else position) + element(0x00200037, "DS", orientation)
    data += element(0x00280002, "US", 3 if photometric == "RGB" else 1) + element(0x00280004, "CS", photometric)
    data += element(0x00280006, "US", 0) if photometric == "RGB" else b""
    data += element(0x00280008, "IS", str(frames)) if frames else b""
    rows, columns = pixels.shape[-2:] if photometric != "RGB" else pixels.shape[:2]
    data += element(0x00280010, "US", rows) + element(0x00280011, "US", columns) + element(0x00280030, "DS", "0.5\\0.7")
    bits = (8, 8, 7) if photometric == "RGB" else (16, 12, 11)
    for tag, value in zip((0x00280100, 0x00280101, 0x00280102, 0x00280103), (*bits, 0), strict=True):
        data += element(tag, "US", value)
    data += element(0x00281052, "DS", "-3") + element(0x00281053, "DS", slope) if slope else b""
    data += element(0x7FE00010, "OW", pixels.astype("u1" if photometric == "RGB" else "<u2").tobytes())
    length = element(0x00020000, "UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + data)


def pixels(seed: int, slices: int = 4, rows: int = 24, columns: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, (slices, rows, columns))


def write_series(folder: Path, values: np.ndarray, suffix: str = "", **options) -> None:
    for number, image in enumerate(values):
        # Names in the opposite order of the positions: a reader that sorts by name turns the volume over.
        write_dicom(folder / f"IM{len(values) - number:04}{suffix}", image, 4.0 * number, **options)


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None, codes: int = 1) -> None:
    """`values` as (slices, rows, columns); by default in the same orientation as `write_dicom`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values.T, np.diag([-0.7, -0.5, 4.0, 1.0]) if affine is None else affine)
    image.set_sform(image.affine, codes)
    image.set_qform(image.affine, codes)
    nibabel.save(image, path)


def write_regions(root: Path, *rows: str) -> None:
    (root / "roi.csv").write_text("\n".join((HEADER, *rows)) + "\n", encoding="utf-8")


@pytest.fixture
def source(tmp_path):
    """Two centres: A with DICOM, B with NIfTI; a patient a class and split."""
    root = tmp_path / "hospital data"
    rows, seed = [], 0
    for center in "AB":
        for split in ("traindata", "testdata"):
            for label in ("0_NMI", "1_MI"):
                seed += 1
                patient = f"{center}{seed}"
                folder = root / center / split / label / patient
                if center == "A":
                    write_series(folder, pixels(seed), ".dcm" if seed % 2 else "")
                else:
                    write_nifti(folder / f"t2.nii{'.gz' if seed % 2 else ''}", pixels(seed).astype(np.int16))
                rows += [f"{patient},1,2,18,5,25", f"{patient},3,0,24,0,30"]
    write_regions(root, *rows)
    return root


def found(root: Path):
    findings = Findings()
    return cases_volumes(root, findings), findings


def problems(root: Path) -> list[str]:
    return found(root)[1].problems


def case_of(root: Path, patient: str):
    cases, findings = found(root)
    assert findings.problems == []
    return next(case for case in cases if case.patient == patient)


def rewritten(root: Path, *rows: str) -> Path:
    """The source with one patient, A1, left."""
    for folder in [*root.glob("*/*/*/*")]:
        if folder.name != "A1":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    for center in ("A/testdata", "B/traindata", "B/testdata"):
        for label in (root / center).iterdir():
            label.rmdir()
        (root / center).rmdir()
    (root / "A/traindata/1_MI").rmdir()
    (root / "B").rmdir()
    write_regions(root, *rows or ["A1,1,2,18,5,25"])
    return root / "A/traindata/0_NMI/A1"


def expected_picture(volume: np.ndarray, index: int, rows: slice, columns: slice) -> np.ndarray:
    """By hand, in float64: quantile, minimum, cut, Pillow's resize."""
    high = np.sort(volume.ravel())[-1] if volume.size < 3 else np.quantile(volume.astype(float), 0.99)
    scaled = (np.minimum(volume, high) - volume.min()) / (high - volume.min()) * 255
    cut = np.rint(scaled[index, rows, columns]).astype(np.uint8)
    return np.asarray(Image.fromarray(cut).resize((224, 224), Image.Resampling.BILINEAR))


def test_cases_are_listed(source):
    cases, findings = found(source)
    assert findings.problems == [] and findings.warnings == []
    assert [(case.center, case.patient, case.label, case.split) for case in cases] == [
        ("A", "A3", "0_NMI", "test"),
        ("A", "A4", "1_MI", "test"),
        ("A", "A1", "0_NMI", "train"),
        ("A", "A2", "1_MI", "train"),
        ("B", "B7", "0_NMI", "test"),
        ("B", "B8", "1_MI", "test"),
        ("B", "B5", "0_NMI", "train"),
        ("B", "B6", "1_MI", "train"),
    ]
    assert len(cases[0].files) == 5 and cases[0].files[-1] == source / "roi.csv"
    assert pickle.loads(pickle.dumps(cases[0])).read()[0].name == "1"


@pytest.mark.parametrize(("patient", "seed"), [("A1", 1), ("A2", 2), ("B5", 5), ("B6", 6)])
def test_pictures_are_the_regions(source, patient, seed):
    first, second = case_of(source, patient).read()
    assert (first.name, second.name) == ("1", "3") and first.mask is None
    assert first.image.shape == (224, 224, 3) and first.image.dtype == np.uint8
    for picture, index, rows, columns in ((first, 1, slice(2, 18), slice(5, 25)), (second, 3, slice(0, 24), slice(0, 30))):
        for channel in range(3):
            difference = picture.image[..., channel].astype(int) - expected_picture(pixels(seed), index, rows, columns)
            assert np.abs(difference).max() <= 1  # float32 against float64, at a rounding edge
    assert first.spacing == pytest.approx((0.5 * 16 / 224, 0.7 * 20 / 224), rel=1e-6)


def test_slices_are_in_the_order_of_simpleitk(source):
    folder = source / "A/traindata/0_NMI/A1"
    volume = read_series(tuple(sorted(folder.iterdir())), "A1")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    assert (volume.values == sitk.GetArrayFromImage(reader.Execute())).all() and (volume.values == pixels(1)).all()


def test_nifti_looks_as_the_dicom_it_came_from(source):
    folder = rewritten(source, "A1,1,2,18,5,25")
    (dicom,) = case_of(source, "A1").read()
    (folder.parent / "B1").mkdir()
    # As the usual converters write it: rows bottom up, so row r is 23 - r.
    affine = np.diag([-0.7, 0.5, 4.0, 1.0])
    affine[1, 3] = -0.5 * 23
    write_nifti(folder.parent / "B1/a.nii.gz", pixels(1)[:, ::-1].astype(np.int16), affine)
    write_regions(source, "A1,1,2,18,5,25", "B1,1,6,22,5,25")
    (nifti,) = case_of(source, "B1").read()
    assert (nifti.image == dicom.image).all() and nifti.spacing == pytest.approx(dicom.spacing)


def test_radiological_view():
    image = np.array([[1, 2, 3], [4, 5, 6]])
    x, y, z = np.eye(3)
    for row_axis, column_axis, expected in [
        (y, x, [[1, 2, 3], [4, 5, 6]]),  # axial
        (-z, x, [[1, 2, 3], [4, 5, 6]]),  # coronal
        (-z, y, [[1, 2, 3], [4, 5, 6]]),  # sagittal
        (-y, x, [[4, 5, 6], [1, 2, 3]]),
        (z, -y, [[6, 5, 4], [3, 2, 1]]),
        (x, y, [[1, 4], [2, 5], [3, 6]]),
        (y, z, [[3, 6], [2, 5], [1, 4]]),
        (np.array([0.6, 0.5, -0.62]), np.array([0.7, -0.7, 0.1]), [[1, 2, 3], [4, 5, 6]]),
    ]:
        shown, turned = radiological(image, row_axis, column_axis)
        assert shown.tolist() == expected and turned == (shown.shape == (3, 2))


def test_transposed_nifti_swaps_the_spacing(source):
    folder = rewritten(source)
    for file in folder.iterdir():
        file.unlink()
    affine = np.zeros((4, 4))
    affine[1, 0], affine[0, 1], affine[2, 2], affine[3, 3] = -0.7, -0.5, 4.0, 1.0  # columns run to the back, rows to the left
    write_nifti(folder / "t2.nii", pixels(1).astype(np.int16), affine)
    (picture,) = case_of(source, "A1").read()
    assert picture.spacing == pytest.approx((0.7 * 20 / 224, 0.5 * 16 / 224), rel=1e-6)
    assert np.abs(picture.image[..., 0].astype(int) - expected_picture(pixels(1), 1, slice(2, 18), slice(5, 25)).T).max() <= 2


def test_nifti_without_orientation_stays_as_stored(source):
    folder = rewritten(source)
    for file in folder.iterdir():
        file.unlink()
    write_nifti(folder / "t2.nii", pixels(1).astype(np.int16), codes=0)
    cases, findings = found(source)
    assert findings.warnings == [
        "center 'A': the NIfTI files of 1 of 1 patients say nothing of their orientation, the pictures stay as stored;"
        " look whether they stand upright"
    ]
    (picture,) = cases[0].read()
    assert np.abs(picture.image[..., 0].astype(int) - expected_picture(pixels(1), 1, slice(2, 18), slice(5, 25))).max() <= 1


def test_monochrome1_is_inverted_once(source):
    folder = rewritten(source)
    write_series(folder, 4095 - pixels(1), ".dcm", photometric="MONOCHROME1")
    assert (read_series(tuple(folder.iterdir()), "A1").values == pixels(1)).all()


def test_slope_of_every_slice_is_applied(tmp_path):
    for number in range(3):
        write_dicom(tmp_path / f"{number}", pixels(number)[0], 4.0 * number, slope=f"{1 + number / 4}")
    volume = read_series(tuple(tmp_path.iterdir()), "A1")
    for number in range(3):
        np.testing.assert_allclose(volume.values[number], pixels(number)[0] * (1 + number / 4) - 3)


def test_scaled_nifti(source):
    folder = rewritten(source)
    for file in folder.iterdir():
        file.unlink()
    image = nibabel.Nifti1Image(pixels(1).T.astype(np.int16), np.diag([-0.7, -0.5, 4.0, 1.0]))
    image.header.set_slope_inter(0.25, 10)
    nibabel.save(image, folder / "t2.nii.gz")
    (picture,) = case_of(source, "A1").read()
    assert np.abs(picture.image[..., 0].astype(int) - expected_picture(pixels(1), 1, slice(2, 18), slice(5, 25))).max() <= 1


BAD_SERIES = {
    "two series": (lambda folder: write_dicom(folder / "x", pixels(1)[0], 16, series="1.2.9"), r"holds 2 series \(1\.2\.3\.4, 1\.2\.9\)"),
    "two echoes": (lambda folder: write_dicom(folder / "x", pixels(1)[0], 4), "several files lie at the same place"),
    "a gap": (lambda folder: write_dicom(folder / "x", pixels(1)[0], 20), r"slices are 4\.00 to 8\.00 mm apart, expected equal steps"),
    "localizer": (
        lambda folder: write_dicom(folder / "x", pixels(1)[0], 16, orientation="0\\1\\0\\0\\0\\-1"),
        "slices have different orientations",
    ),
    "size": (lambda folder: write_dicom(folder / "x", pixels(1)[0, :9], 16), r"different sizes .*\(24, 30\), \(9, 30\)"),
    "no position": (lambda folder: write_dicom(folder / "x", pixels(1)[0], position=""), "A1/x: gives no image position"),
    "not DICOM": (lambda folder: (folder / "x").write_bytes(b"notes of the radiologist" * 20), "A1/x: is no readable DICOM image"),
    "empty": (lambda folder: (folder / "x").write_bytes(b""), "A1/x: is no readable DICOM image"),
    "frames": (lambda folder: write_dicom(folder / "x", pixels(1), frames=4, kind=ENHANCED_MR), "A1/x: holds 4 frames"),
    "colour": (
        lambda folder: write_dicom(folder / "x", np.zeros((24, 30, 3)), 16, photometric="RGB"),
        "A1/x: is a colour image",
    ),
    "cut short": (
        lambda folder: (folder / "IM0002.dcm").write_bytes((folder / "IM0002.dcm").read_bytes()[:-300]),
        "cannot be decoded|is no readable DICOM image",
    ),
}


@pytest.mark.parametrize("kind", BAD_SERIES)
def test_bad_series(source, kind):
    folder = rewritten(source)
    spoil, message = BAD_SERIES[kind]
    spoil(folder)
    with pytest.raises(SourceError, match=message) as caught:
        case_of(source, "A1").read()
    assert str(caught.value).startswith("A/traindata/0_NMI/A1") and "\n" not in str(caught.value)


def test_multi_frame_is_seen_without_decoding(source):
    folder = rewritten(source)
    for file in folder.iterdir():
        file.unlink()
    write_dicom(folder / "a.dcm", pixels(1), frames=4, kind=ENHANCED_MR)
    assert problems(source) == [
        "A/traindata/0_NMI/A1/a.dcm: holds 4 frames (enhanced DICOM), expected one image a file; convert it to NIfTI"
    ]


def nifti(folder: Path, values: np.ndarray, name: str = "t2.nii.gz") -> None:
    for file in folder.iterdir():
        file.unlink()
    write_nifti(folder / name, values)


def with_nan() -> np.ndarray:
    values = pixels(1).astype(np.float32)
    values[1, 3, 4] = np.nan
    return values


def cut_short(folder: Path, name: str) -> None:
    nifti(folder, pixels(1).astype(np.int16), name)
    (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


LISTED = {
    "4-D": (lambda folder: nifti(folder, np.zeros((2, 4, 24, 30), np.int16)), r"has 4 dimensions \(30 x 24 x 4 x 2\), expected 3"),
    "2-D": (lambda folder: nifti(folder, np.zeros((24, 30), np.int16)), r"has 2 dimensions \(30 x 24\), expected 3"),
    "complex": (lambda folder: nifti(folder, pixels(1).astype(np.complex64)), "voxels are colours, vectors or complex"),
    "colours": (
        lambda folder: nifti(folder, np.zeros((4, 24, 30), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "voxels are colours, vectors or complex",
    ),
    "no NIfTI": (
        lambda folder: (nifti(folder, pixels(1).astype(np.int16)), (folder / "t2.nii.gz").write_bytes(gzip.compress(b"x" * 999))),
        r"t2\.nii\.gz: not a readable NIfTI file",
    ),
    "two NIfTIs": (
        lambda folder: (nifti(folder, pixels(1).astype(np.int16)), write_nifti(folder / "adc.nii", pixels(2).astype(np.int16))),
        "holds 2 files with a NIfTI among them",
    ),
    "both kinds": (lambda folder: write_nifti(folder / "t2.nii", pixels(1).astype(np.int16)), "holds 5 files with a NIfTI among them"),
}


@pytest.mark.parametrize("kind", LISTED)
def test_bad_nifti_is_seen_without_decoding(source, kind):
    spoil, message = LISTED[kind]
    spoil(rewritten(source))
    (problem,) = problems(source)
    assert problem.startswith("A/traindata/0_NMI/A1")
    with pytest.raises(SourceError, match=message):
        raise SourceError(problem)


@pytest.mark.parametrize("name", ["t2.nii", "t2.nii.gz"])
def test_nifti_that_is_cut_short(source, name):
    cut_short(rewritten(source), name)
    with pytest.raises(SourceError, match=rf"^A/traindata/0_NMI/A1/{name}: cannot be decoded .*damaged or cut short"):
        case_of(source, "A1").read()


def test_nan(source):
    nifti(rewritten(source), with_nan())
    with pytest.raises(SourceError, match=r"^A/traindata/0_NMI/A1: volume has 1 NaN or infinite voxels"):
        case_of(source, "A1").read()


def test_fourth_axis_of_one_is_none(source):
    nifti(rewritten(source), pixels(1).astype(np.int16)[None])
    assert len(case_of(source, "A1").read()) == 1


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["A1,4,2,18,5,25"], "line 2: slice 4, A/traindata/0_NMI/A1 has the slices 0 to 3"),
        (["A1,1,2,25,5,25"], "line 2: row_stop 25 and column_stop 25, A/traindata/0_NMI/A1 has 24 rows and 30 columns"),
        (["A1,1,2,18,5,31"], "line 2: row_stop 18 and column_stop 31, A/traindata/0_NMI/A1 has 24 rows and 30 columns"),
        (["A1,1,0,24,0,30", "A1,2,18,18,5,25"], "line 3: row_start 18 and row_stop 18 leave nothing, expected a stop above the start"),
        (["A1,1,0,24,0,30", "A1,2,1,18,25,5"], "line 3: column_start 25 and column_stop 5 leave nothing, expected a stop above the start"),
        (["A1,1,0,24,0,30", "A1,-1,1,18,5,25"], "line 3: slice '-1', expected a whole number from 0"),
        (["A1,1,0,24,0,30", "A1,2,1.5,18,5,25"], "line 3: row_start '1.5', expected a whole number from 0"),
        (["A1,1,0,24,0,30", "A1,2,1,,5,25"], "line 3: row_stop '', expected a whole number from 0"),
        (["A1,1,0,24,0,30", ",2,1,18,5,25"], "line 3: patient is empty, expected the name of a folder"),
        (
            ["A1,1,0,24,0,30", "A1,1,1,18,5,25"],
            "line 3: patient 'A1' has a region in slice 1 already, expected one a slice",
        ),
        (
            ["A1,1,0,24,0,30", "A9,1,1,18,5,25"],
            "line 3: the patient has no folder, expected <center>/{traindata,testdata}/<class>/<patient>",
        ),
        (["A1,1,0,24,0"], "line 2: 5 fields, expected 6"),
    ],
)
def test_bad_regions(source, rows, expected):
    rewritten(source, *rows)
    assert problems(source) == [f"roi.csv: {expected}"]


def test_regions_of_patients_of_one_name(source):
    (source / "B/traindata/0_NMI/B5").rename(source / "B/traindata/0_NMI/A1")
    text = (source / "roi.csv").read_text(encoding="utf-8").replace("B5,1,", "A1,2,").replace("B5,3,", "A1,0,")
    (source / "roi.csv").write_text(text, encoding="utf-8")
    (problem,) = problems(source)
    assert problem == (
        "roi.csv: line 2: patient 'a1' is at the centers A and B, expected a column center that says whose regions these are"
    )
    header, *lines = text.splitlines()
    centers = [f"{'B' if number in (8, 9) else line[0]}" for number, line in enumerate(lines)]
    (source / "roi.csv").write_text("\n".join([f"center,{header}", *(f"{c},{line}" for c, line in zip(centers, lines, strict=True))]))
    cases, findings = found(source)
    assert findings.problems == []
    slices = {case.center: [picture.name for picture in case.read()] for case in cases if case.patient == "A1"}
    assert slices == {"A": ["1", "3"], "B": ["2", "0"]}
    done = prepare("endometrial", source, source.parent / "out", progress=False)
    assert {"A/A1", "B/A1", "B/B6"} <= set(done.manifest.table["patient"])
    assert "1 patient name(s) are at several centers (A1 at A and B)" in "".join(done.warnings)
    lines[0] = lines[0].replace("A1", "A9")
    (source / "roi.csv").write_text("\n".join([f"center,{header}", *(f"{c},{line}" for c, line in zip(centers, lines, strict=True))]))
    assert problems(source) == ["roi.csv: line 2: the patient has no folder, expected <center>/{traindata,testdata}/<class>/<patient>"]


def test_patient_without_a_region(source):
    rewritten(source, "A1,1,0,24,0,30")
    write_series(source / "A/traindata/0_NMI/A2", pixels(2))
    assert problems(source) == ["A/traindata/0_NMI/A2: patient 'A2' has no row in roi.csv, expected at least one"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"patient,slice,x0,x1,y0,y1\nA1,1,2,3,4,5\n", "header is 'patient,slice,x0,x1,y0,y1', expected"),
        (f"{HEADER}\n".encode(), "has a header only"),
        (b"", "header is ''"),
        (f"{HEADER}\nM\xfcller,1,2,3,4,5\n".encode("latin-1"), "is not CSV in UTF-8"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_bad_region_file_is_said_once(source, content, expected):
    file = source / "roi.csv"
    file.unlink() if content is None else file.write_bytes(content)
    (problem,) = problems(source)
    assert problem.startswith(f"roi.csv: {expected}")


def test_all_problems_at_once(source):
    rewritten(source, "A1,9,0,24,0,30", "A2,1,0,24,0,30", "A3,x,0,1,0,1")
    (source / "A/traindata/0_NMI/A1/notes.txt").write_text("x")
    (source / "A/traindata/0_NMI/A4").mkdir()
    (source / "A/valdata").mkdir()
    (source / "C").mkdir()
    (source / "readme.txt").write_text("x")
    text = "\n".join(problems(source))
    for expected in (
        "slice 9",
        "line 3: the patient has no folder",
        "slice 'x'",
        "A1/notes.txt: unexpected file, expected one DICOM series or one .nii or .nii.gz",
        "A4: holds no volume",
        "A/valdata: unexpected folder, expected traindata and testdata",
        "center 'C' has no patients",
        "readme.txt: unexpected file",
    ):
        assert expected in text
    assert str(source) not in text


def test_a_folder_with_another_form_is_one_problem(source):
    (source / "A/traindata/0_NMI/A4").mkdir()
    (source / "A/traindata/0_NMI/A4/v.mha").write_bytes(b"ObjectType = Image")
    (problem,) = problems(source)
    assert problem == "A/traindata/0_NMI/A4/v.mha: unexpected file, expected one DICOM series or one .nii or .nii.gz"


def test_patient_twice(source):
    write_series(source / "A/testdata/1_MI/A1", pixels(1))
    assert problems(source) == ["center 'A': patient 'A1' is in test/1_MI and train/0_NMI, expected one folder a patient"]


@pytest.mark.parametrize(
    ("folder", "person"),
    [("Doe_Jane", ("DOE^JANE", "1")), ("jane doe", ("Doe^Jane", "1")), ("0815", ("X", "0815 ")), ("Müller", ("Müller", "1"))],
)
def test_folder_called_as_the_patient_is_a_warning(source, folder, person):
    rewritten(source, "A1,1,0,24,0,30", f"{folder},1,0,24,0,30")
    write_series(source / "A/traindata/0_NMI" / folder, pixels(2), person=person)
    _, findings = found(source)
    assert findings.problems == [] and len(findings.warnings) == 1
    assert "center 'A': 1 of 2 patient folders are called as their DICOM files call the patient" in findings.warnings[0]
    assert folder not in findings.warnings[0]  # the warning is kept; it must not repeat the name


def test_nothing_of_the_header_comes_out(source):
    folder = rewritten(source)
    write_series(folder, pixels(1), ".dcm", person=(b"M\xfcller^J\xf6rg", "PID77"), series="1.2.3.4.99")
    cases, findings = found(source)
    assert findings.warnings == [] and findings.problems == []
    kept = pickle.dumps((cases, cases[0].read()))
    for secret in (b"ller", b"PID77", b"20190416", b"1.2.3.4.99"):
        assert secret not in kept


def test_unusual_names_and_system_files(source):
    name = "Fräulein 名, 7"
    write_series(source / "Ö Süd/traindata/1_MI" / name, pixels(9))
    with open(source / "roi.csv", "a", encoding="utf-8") as file:
        # Typed on a system that writes the umlaut as two characters.
        file.write('"Fra\u0308ulein 名, 7",0,0,24,0,30\n')
    folder = source / "Ö Süd/traindata/1_MI" / name
    for extra in (".DS_Store", "DICOMDIR", "Thumbs.db", "._IM0001"):
        (folder / extra).write_bytes(b"x")
    (source / "patients.csv").write_text("patient,age,figo,histology\n")
    (picture,) = case_of(source, name).read()
    assert picture.name == "0"


def test_names_typed_on_another_system_are_the_same(source):
    rewritten(source, "A1,1,0,24,0,30", "\u00fc,1,0,24,0,30", "u\u0308,1,0,24,0,30")
    write_series(source / "A/traindata/0_NMI/u\u0308", pixels(2))
    assert problems(source) == ["roi.csv: line 4: patient 'u\u0308' has a region in slice 1 already, expected one a slice"]


def test_files_called_by_their_uid(tmp_path):
    for number in range(2):
        write_dicom(tmp_path / f"A/traindata/1_MI/A1/1.2.840.{number}", pixels(number)[0], 4.0 * number)
    write_regions(tmp_path, "A1,1,0,24,0,30")
    assert len(case_of(tmp_path, "A1").read()) == 1


def test_links_out_of_the_folder_are_refused(source, tmp_path):
    write_dicom(tmp_path / "outside/IM9", pixels(1)[0], 16.0)
    (source / "A/traindata/0_NMI/A1/IM9").symlink_to(tmp_path / "outside/IM9")
    (source / "A/traindata/0_NMI/A9").symlink_to(tmp_path / "outside", target_is_directory=True)
    first, second = problems(source)
    assert first.startswith("A/traindata/0_NMI/A9: links out of the data folder") or second.startswith("A/traindata/0_NMI/A9: links")
    assert any(text.startswith("A/traindata/0_NMI/A1/IM9: links out of the data folder") for text in (first, second))


def test_source_is_only_read(source):
    def state():
        return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in source.rglob("*"))

    before = state()
    for case in found(source)[0]:
        case.read()
    assert state() == before


def test_recognised(source, tmp_path):
    form, folders = FORMATS
    assert folders.name == "folders"
    assert form.name == "volumes" and form.recognise is recognise_volumes and form.cases is cases_volumes and form.manifest is None
    assert recognise_volumes(source)
    (source / "roi.csv").unlink()  # then its absence is said, not "unknown format"
    assert recognise_volumes(source)
    images = tmp_path / "images"
    (images / "A/traindata/1_MI/P1").mkdir(parents=True)
    assert not recognise_volumes(images)
    (images / "A/traindata/1_MI/P1/1.png").write_bytes(b"x")
    assert not recognise_volumes(images)
    (tmp_path / "file").write_text("x")
    for other in (tmp_path / "nowhere", tmp_path / "file", tmp_path):
        assert not recognise_volumes(other)


def test_read_is_a_function_of_the_module(source):
    # Worker processes get it pickled.
    assert isinstance(found(source)[0][0].read, partial)
