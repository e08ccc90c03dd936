"""Prostate volumes: both formats, orientation and spacing, HarmoFL's order, and every kind of file that cannot be used."""

import gzip
import os
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from vfmgl_lib.data.preprocessing import volume_slices
from vfmgl_lib.tasks.cases import Case, Findings, SourceError
from vfmgl_lib.tasks.prostate.reader import (
    FORMATS,
    PROMISE12_CENTERS,
    cases_promise12,
    cases_sites,
    image_order,
    recognise_promise12,
    recognise_sites,
)

SHAPE = (12, 9, 6)  # columns, rows, slices
SPACING = (0.5, 0.75, 3.0)
# Radiological order: columns to the patient's left, rows backwards, slices upwards.
LPS = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
LPS[:3, 3] = (20.0, 31.5, -40.25)


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(np.int16)


def gland() -> np.ndarray:
    """A gland in the slices 2 to 4, told apart from its mirror images."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:7, 1:5, 2:5] = 1
    mask[3, 2, 3] = 2
    return mask


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_case(folder: Path, name: str = "Case00", image=None, mask=None, affine=LPS, mask_affine=None) -> tuple[Path, Path]:
    image, mask = volume() if image is None else image, gland() if mask is None else mask
    mask_affine = affine if mask_affine is None else mask_affine
    return (
        write_nifti(folder / f"{name}.nii.gz", image, affine),
        write_nifti(folder / f"{name}_segmentation.nii.gz", mask, mask_affine),
    )


def write_meta(folder: Path, name: str = "Case00", compressed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, array in (("", volume()), ("_segmentation", gland())):
        image = sitk.GetImageFromArray(array.T)
        image.SetSpacing(SPACING)
        image.SetOrigin((-20.0, -31.5, -40.25))
        sitk.WriteImage(image, str(folder / f"{name}{suffix}.mhd"), compressed)


def listed(source: Path, reader=cases_sites) -> tuple[list[Case], Findings]:
    findings = Findings()
    return reader(source, findings), findings


def only_case(source: Path, reader=cases_sites) -> Case:
    (case,), findings = listed(source, reader)
    assert not findings.problems
    return case


def problem(source: Path, reader=cases_sites) -> str:
    """The only problem, from the listing or from reading the only case."""
    cases, findings = listed(source, reader)
    if findings.problems:
        (text,) = findings.problems
        assert "\n" not in text
        return text
    (case,) = cases
    with pytest.raises(SourceError) as caught:
        case.read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same_pictures(found, expected) -> None:
    assert [picture.name for picture in found] == [picture.name for picture in expected]
    for first, second in zip(found, expected, strict=True):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.mask, second.mask)
        assert first.spacing == second.spacing


def test_a_case_becomes_pictures(tmp_path):
    files = write_case(tmp_path / "BIDMC")
    case = only_case(tmp_path)
    assert (case.name, case.center, case.patient, case.label, case.split) == ("Case00", "BIDMC", "BIDMC-Case00", "", "")
    assert set(case.files) == set(files)
    pictures = case.read()
    assert [picture.name for picture in pictures] == ["02", "03", "04"]
    wanted = volume_slices(volume().transpose(2, 1, 0), gland().transpose(2, 1, 0) > 0)
    for picture, expected in zip(pictures, wanted, strict=True):
        assert picture.image.shape == (9, 12, 3) and picture.image.dtype == picture.mask.dtype == np.uint8
        np.testing.assert_array_equal(picture.image, expected.image)
        np.testing.assert_array_equal(picture.mask, expected.mask)
        assert picture.spacing == (0.75, 0.5), "row, column"
    assert pictures[1].mask[2, 3] == 1, "label 2 is prostate"


def test_sites_number_their_patients_alike(tmp_path):
    for site in ("BIDMC", "ISBI_1.5", "Süd klinik"):
        for name in ("Case00", "Case01"):
            write_case(tmp_path / site, name)
    cases, findings = listed(tmp_path)
    assert findings == Findings()
    assert Counter(case.center for case in cases) == {"BIDMC": 2, "ISBI_1.5": 2, "Süd klinik": 2}
    assert len({case.patient for case in cases}) == 6
    assert all(case.read() for case in cases)


@pytest.mark.parametrize("names", [("Case00.nii", "Case00_segmentation.nii"), ("Case00.nii.gz", "Case00_Segmentation.nii.gz")])
def test_other_spellings(tmp_path, names):
    for name, array in zip(names, (volume(), gland()), strict=True):
        write_nifti(tmp_path / "BMC" / name, array)
    assert len(only_case(tmp_path).read()) == 3


def test_what_is_beside_the_sites_is_ignored(tmp_path):
    write_case(tmp_path / "HK")
    (tmp_path / "HK-dir.npy").write_bytes(b"x")
    (tmp_path / "phantoms.json").write_text("{}")
    (tmp_path / "HK" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "HK" / "._Case00.nii.gz").write_bytes(b"x")
    assert only_case(tmp_path).name == "Case00"


def test_long_volumes_count_with_more_digits(tmp_path):
    image = np.random.default_rng(0).integers(0, 9, (4, 4, 101)).astype(np.int16)
    mask = np.zeros(image.shape, np.uint8)
    mask[1, 1, (7, 99)] = 1
    write_case(tmp_path / "HK", image=image, mask=mask)
    assert [picture.name for picture in only_case(tmp_path).read()] == ["007", "099"]


def test_a_read_only_source_is_enough(tmp_path):
    write_case(tmp_path / "HK")
    before = sorted(tmp_path.rglob("*"))
    for path in (*before, tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert only_case(tmp_path).read()
    finally:
        for path in (tmp_path, *before):
            path.chmod(0o755)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("order", "flips"),
    [
        ((0, 1, 2), (0, 0, 0)),
        ((0, 1, 2), (1, 1, 0)),
        ((0, 1, 2), (0, 0, 1)),
        ((1, 0, 2), (0, 1, 1)),
        ((2, 1, 0), (1, 0, 0)),
        ((2, 0, 1), (1, 1, 1)),
    ],
)
def test_flipped_and_permuted_axes_are_turned_back(tmp_path, order, flips):
    """The same body stored in another order gives the same pictures."""
    stored, affine = [volume(), gland()], LPS.copy()
    for axis in np.flatnonzero(flips):
        stored = [np.flip(array, axis) for array in stored]
        affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
        affine[:3, axis] *= -1
    stored = [array.transpose(order) for array in stored]
    affine[:3, :3] = affine[:3, order]
    write_case(tmp_path / "stored" / "HK", image=stored[0], mask=stored[1], affine=affine)
    write_case(tmp_path / "plain" / "HK")
    assert_same_pictures(only_case(tmp_path / "stored").read(), only_case(tmp_path / "plain").read())


def tilted(degrees: float) -> np.ndarray:
    """LPS, tilted about the left-right axis."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ LPS


@pytest.mark.parametrize("degrees", [3, -20, 40])
def test_an_oblique_acquisition_keeps_its_slices(tmp_path, degrees):
    write_case(tmp_path / "oblique" / "HK", affine=tilted(degrees))
    write_case(tmp_path / "plain" / "HK")
    assert_same_pictures(only_case(tmp_path / "oblique").read(), only_case(tmp_path / "plain").read())


@pytest.mark.parametrize("affine", [tilted(60), LPS[:, (2, 1, 0, 3)] @ np.diag([0.2, 1, 5, 1])])
def test_other_planes_are_refused(tmp_path, affine):
    write_case(tmp_path / "HK", affine=affine)
    assert "HK/Case00.nii.gz" in problem(tmp_path) and "not an axial acquisition" in problem(tmp_path)


def test_identity_header_says_nothing(tmp_path):
    """Neither spacing nor orientation, and one warning a site."""
    for name in ("Case00", "Case01"):
        write_case(tmp_path / "UCL", name, affine=np.eye(4))
    write_case(tmp_path / "HK")
    cases, findings = listed(tmp_path)
    (warning,) = findings.warnings
    assert warning.startswith("UCL: 2 of 2 volumes have no spacing")
    bare = next(case for case in cases if case.center == "UCL").read()
    known = next(case for case in cases if case.center == "HK").read()
    assert bare[0].spacing is None
    np.testing.assert_array_equal(bare[0].image, known[0].image)


def test_spacing_without_orientation_is_kept(tmp_path):
    for suffix, array in (("", volume()), ("_segmentation", gland())):
        image = nib.Nifti1Image(array, None)
        image.header.set_zooms(SPACING)
        (tmp_path / "HK").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "HK" / f"Case00{suffix}.nii.gz")
    cases, findings = listed(tmp_path)
    assert findings == Findings()
    assert cases[0].read()[0].spacing == (0.75, 0.5)


def test_scaled_integers_are_scaled(tmp_path):
    _, mask = write_case(tmp_path / "HK")
    image = nib.Nifti1Image(gland() * 2, LPS)
    header = bytearray(image.to_bytes())
    header[112:116] = np.float32(0.5).tobytes()  # scl_slope
    mask.write_bytes(gzip.compress(bytes(header)))
    # The stored 2 and 4 mean 1 and 2 once the header is applied.
    assert len(only_case(tmp_path).read()) == 3


# What is wrong with a case -> what the message must say. Each changes the files of BIDMC/Case00.
def bad_shape(folder):
    write_nifti(folder / "Case00_segmentation.nii.gz", gland()[:-1])


def bad_origin(folder):
    shifted = LPS.copy()
    shifted[0, 3] += 0.01
    write_nifti(folder / "Case00_segmentation.nii.gz", gland(), shifted)


def bad_spacing(folder):
    write_nifti(folder / "Case00_segmentation.nii.gz", gland(), LPS @ np.diag([1.01, 1, 1, 1]))


def bad_direction(folder):
    write_nifti(folder / "Case00_segmentation.nii.gz", gland(), tilted(5))


def flipped_mask(folder):
    write_nifti(folder / "Case00_segmentation.nii.gz", gland(), np.diag([-1, 1, 1, 1]) @ LPS)


def bare_mask(folder):
    write_nifti(folder / "Case00_segmentation.nii.gz", gland(), np.eye(4))


def four_dimensions(folder):
    write_nifti(folder / "Case00.nii.gz", volume()[..., None].repeat(2, -1))


def nan_voxel(folder):
    write_nifti(folder / "Case00.nii.gz", np.where(volume() == volume().max(), np.nan, volume()).astype(np.float32))


def infinite_voxel(folder):
    write_nifti(folder / "Case00.nii.gz", np.where(volume() == volume().max(), np.inf, volume()).astype(np.float32))


def constant_volume(folder):
    write_nifti(folder / "Case00.nii.gz", np.full(SHAPE, 7, np.int16))


def truncated(folder):
    path = folder / "Case00.nii.gz"
    os.truncate(path, path.stat().st_size // 2)


def truncated_mask(folder):
    path = folder / "Case00_segmentation.nii.gz"
    os.truncate(path, path.stat().st_size - 12)


def truncated_header(folder):
    path = folder / "Case00.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:100]))


def flipped_bit(folder):
    """A stored (not compressed) block decodes whatever is in it: only the checksum tells."""
    path = folder / "Case00.nii.gz"
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    content[-100] ^= 1
    path.write_bytes(content)


def garbage(folder):
    (folder / "Case00.nii.gz").write_bytes(b"not a volume at all" * 50)


def empty_file(folder):
    (folder / "Case00.nii.gz").write_bytes(b"")


def empty_gland(folder):
    write_nifti(folder / "Case00_segmentation.nii.gz", np.zeros(SHAPE, np.uint8))


def gland_at_the_edge(folder):
    mask = np.zeros(SHAPE, np.uint8)
    mask[..., 0] = 1
    write_nifti(folder / "Case00_segmentation.nii.gz", mask)


def fractions(folder):
    write_nifti(folder / "Case00_segmentation.nii.gz", (gland() * 0.5).astype(np.float32))


def nan_mask(folder):
    write_nifti(folder / "Case00_segmentation.nii.gz", np.where(gland() == 2, np.nan, gland()).astype(np.float32))


def more_labels(folder):
    write_nifti(folder / "Case00_segmentation.nii.gz", gland() * 3)


def two_slices(folder):
    write_case(folder, image=volume()[..., :2], mask=gland()[..., 2:4])


def colours(folder):
    array = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    write_nifti(folder / "Case00.nii.gz", array)


def huge(folder):
    path = folder / "Case00.nii"
    image = nib.Nifti1Image(volume(), LPS)
    image.header["dim"][1:4] = 30000
    path.write_bytes(image.header.binaryblock + bytes(100))
    (folder / "Case00.nii.gz").unlink()


def no_width(folder):
    image = nib.Nifti1Image(volume(), LPS)
    image.header["srow_x"] = 0
    (folder / "Case00.nii.gz").write_bytes(gzip.compress(image.header.binaryblock + bytes(4) + volume().tobytes("F")))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (bad_shape, "BIDMC/Case00_segmentation.nii.gz: mask has 11 x 9 x 6 voxels, expected 12 x 9 x 6 as BIDMC/Case00.nii.gz"),
        (bad_origin, "another grid than BIDMC/Case00.nii.gz: origin [20.01, 31.5, -40.25] mm, expected [20.0, 31.5, -40.25] mm"),
        (bad_spacing, "another grid than BIDMC/Case00.nii.gz: spacing 0.505 x 0.75 x 3 mm, expected 0.5 x 0.75 x 3 mm"),
        (bad_direction, "another grid than BIDMC/Case00.nii.gz: directions"),
        (flipped_mask, "another grid than BIDMC/Case00.nii.gz: directions [[1.0, "),
        (bare_mask, "spacing 1 x 1 x 1 mm, expected 0.5 x 0.75 x 3 mm"),
        (four_dimensions, "BIDMC/Case00.nii.gz: has 4 dimensions (12 x 9 x 6 x 2), expected 3"),
        (nan_voxel, "BIDMC/Case00.nii.gz: volume has 1 NaN or infinite voxels"),
        (infinite_voxel, "BIDMC/Case00.nii.gz: volume has 1 NaN or infinite voxels"),
        (constant_volume, "BIDMC/Case00.nii.gz: volume has no contrast"),
        (truncated, "BIDMC/Case00.nii.gz: cannot be decoded"),
        (truncated_mask, "BIDMC/Case00_segmentation.nii.gz: cannot be decoded"),
        (truncated_header, "BIDMC/Case00.nii.gz: not a readable NIfTI file"),
        (flipped_bit, "BIDMC/Case00.nii.gz: cannot be decoded (CRC check failed"),
        (garbage, "BIDMC/Case00.nii.gz: not a readable NIfTI file"),
        (empty_file, "BIDMC/Case00.nii.gz: not a readable NIfTI file"),
        (empty_gland, "BIDMC/Case00_segmentation.nii.gz: mask is empty in all 6 slices"),
        (gland_at_the_edge, "BIDMC/Case00_segmentation.nii.gz: gland only in the first or last of 6 slices"),
        (fractions, "BIDMC/Case00_segmentation.nii.gz: values of the mask: found 0.5, expected whole numbers (within 0.001)"),
        (nan_mask, "BIDMC/Case00_segmentation.nii.gz: values of the mask: found nan, expected whole numbers (within 0.001)"),
        (more_labels, "BIDMC/Case00_segmentation.nii.gz: mask holds 0, 3, 6, expected 0 and 1"),
        (two_slices, "BIDMC/Case00.nii.gz: has 2 slices, expected at least 3"),
        (colours, "BIDMC/Case00.nii.gz: voxels are colours"),
        (huge, "BIDMC/Case00.nii: claims 30000 x 30000 x 30000 voxels"),
        (no_width, "expected one with spacings above 0"),
    ],
)
def test_unusable_cases(tmp_path, spoil, message):
    folder = tmp_path / "BIDMC"
    write_case(folder)
    spoil(folder)
    text = problem(tmp_path)
    assert message in text
    assert text.count("BIDMC/Case00") <= 2 and ": BIDMC" not in text, "the file is named once at the beginning"


def test_grids_may_differ_by_rounding(tmp_path):
    write_case(tmp_path / "HK", mask_affine=LPS + 5e-4 * np.eye(4, k=3))
    assert only_case(tmp_path).read()


def test_all_problems_are_reported_together(tmp_path):
    write_case(tmp_path / "HK", "Case38")
    (tmp_path / "HK" / "Case38_segmentation.nii.gz").unlink()
    write_case(tmp_path / "HK", "Case39")
    (tmp_path / "HK" / "Case39.nii.gz").unlink()
    write_case(tmp_path / "HK", "Case40")
    shutil.copy(tmp_path / "HK" / "Case40.nii.gz", tmp_path / "HK" / "case40.nii.gz")
    write_case(tmp_path / "HK", "Case41", image=volume()[..., None].repeat(2, -1))
    write_case(tmp_path / "HK", "Case42")
    (tmp_path / "HK" / "notes.txt").write_text("x")
    (tmp_path / "HK" / "atlas.json.gz").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    write_case(tmp_path, "Case43")
    cases, findings = listed(tmp_path)
    assert [case.name for case in cases] == ["Case40", "Case42"]
    problems = "\n".join(findings.problems)
    for text in (
        "HK/Case38.nii.gz: mask is missing, expected Case38_segmentation.nii.gz",
        "HK/Case39_segmentation.nii.gz: mask without volume, expected Case39.nii.gz",
        "HK/case40.nii.gz: the same case as Case40.nii.gz",
        "HK/Case41.nii.gz: has 4 dimensions",
        "HK/notes.txt: unexpected file",
        "HK/atlas.json.gz: unexpected file",
        "empty: holds no volume",
        "Case43.nii.gz: unexpected file, expected one folder per site",
        "Case43_segmentation.nii.gz: unexpected file",
    ):
        assert problems.count(text) == 1, text
    assert len(findings.problems) == 9


def test_links_out_of_the_source_are_refused(tmp_path):
    write_case(tmp_path / "elsewhere")
    write_case(tmp_path / "source" / "HK")
    (tmp_path / "source" / "UCL").symlink_to(tmp_path / "elsewhere")
    volume_path = tmp_path / "source" / "HK" / "Case00.nii.gz"
    volume_path.unlink()
    volume_path.symlink_to(tmp_path / "elsewhere" / "Case00.nii.gz")
    cases, findings = listed(tmp_path / "source")
    assert not cases
    assert sum("links out of the data folder" in text for text in findings.problems) == 2


def test_promise12_archives(tmp_path):
    write_meta(tmp_path / "part 1", "Case05")
    write_meta(tmp_path / "part 2", "Case26", compressed=True)
    cases, findings = listed(tmp_path, cases_promise12)
    assert findings == Findings()
    assert [(case.name, case.center, case.patient) for case in cases] == [
        ("Case05", "BIDMC", "BIDMC-Case05"),
        ("Case26", "UCL", "UCL-Case26"),
    ]
    assert {path.name for path in cases[1].files} == {f"Case26{s}.{e}" for s in ("", "_segmentation") for e in ("mhd", "zraw")}
    write_case(tmp_path / "nifti" / "UCL")
    for case in cases:
        assert_same_pictures(case.read(), only_case(tmp_path / "nifti").read())


def test_promise12_in_one_folder(tmp_path):
    write_meta(tmp_path, "Case13")
    assert only_case(tmp_path, cases_promise12).center == "RUNMC"


def test_promise12_as_nifti(tmp_path):
    write_case(tmp_path, "Case38")
    (case,), findings = listed(tmp_path, cases_promise12)
    assert case.center == "HK" and len(case.read()) == 3 and not findings.problems
    assert "give the folder above it" in findings.warnings[0], "the folder of one site would look the same"


def test_promise12_case_numbers():
    assert sorted(PROMISE12_CENTERS) == list(range(50))
    assert Counter(PROMISE12_CENTERS.values()) == {"BIDMC": 12, "HK": 12, "UCL": 13, "RUNMC": 13}


def test_promise12_problems(tmp_path):
    write_meta(tmp_path / "a", "Case50")
    write_meta(tmp_path / "a", "Case07")
    write_meta(tmp_path / "b", "case7")
    write_meta(tmp_path / "b", "Case08")
    (tmp_path / "b" / "Case08.raw").unlink()
    write_meta(tmp_path / "b", "Case09")
    header = tmp_path / "b" / "Case09.mhd"
    header.write_text(header.read_text().replace("Case09.raw", "../a/Case07.raw"))
    write_meta(tmp_path / "b", "Case10")
    (tmp_path / "b" / "Case10_segmentation.mhd").unlink()
    write_meta(tmp_path, "Case11")
    write_meta(tmp_path / "b", "Case12")
    (tmp_path / "b" / "Case12.mhd").write_text("ObjectType = Image\n")
    cases, findings = listed(tmp_path, cases_promise12)
    assert [case.name for case in cases] == ["Case07"]
    problems = "\n".join(findings.problems)
    for text in (
        "a/Case50.mhd: is not a training case of PROMISE12, expected Case00 to Case49",
        "b/case7.mhd: case 7 is in a/Case07.mhd as well",
        "b/Case08.mhd: keeps its voxels in 'Case08.raw', expected a file beside it",
        "b/Case09.mhd: keeps its voxels in '../a/Case07.raw', expected a file beside it",
        "b/Case10.mhd: mask is missing, expected Case10_segmentation.mhd",
        "Case11.mhd: lies beside folders of cases",
        "b/Case12.mhd: not a readable MetaImage file (ITK cannot read it)",
    ):
        assert problems.count(text) == 1, text


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_voxels_of_a_meta_image(tmp_path, compressed):
    write_meta(tmp_path, compressed=compressed)
    (data,) = (path for path in tmp_path.iterdir() if path.suffix in (".raw", ".zraw") and "segm" not in path.name)
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    assert "Case00.mhd: cannot be decoded" in problem(tmp_path, cases_promise12)
    if compressed:
        # SimpleITK alone would notice neither of these.
        data.write_bytes(content[:-4] + b"\0\0\0\0")
        assert "Case00.mhd: cannot be decoded" in problem(tmp_path, cases_promise12)
        data.write_bytes(content[:-4])
        header = tmp_path / "Case00.mhd"
        header.write_text(header.read_text().replace(f"DataSize = {len(content)}", f"DataSize = {len(content) - 4}"))
        assert "Case00.mhd: cannot be decoded (Case00.zraw unpacks to" in problem(tmp_path, cases_promise12)


def test_formats_are_told_apart(tmp_path):
    write_case(tmp_path / "sites" / "HK")
    write_meta(tmp_path / "nested" / "TrainingData_Part1")
    write_meta(tmp_path / "flat")
    write_case(tmp_path / "nifti")
    (tmp_path / "other" / "images").mkdir(parents=True)
    (tmp_path / "other" / "images" / "a.png").write_bytes(b"x")
    found = {
        folder: (recognise_sites(tmp_path / folder), recognise_promise12(tmp_path / folder))
        for folder in ("sites", "nested", "flat", "nifti", "other", "absent")
    }
    assert found == {
        "sites": (True, False),
        "nested": (False, True),
        "flat": (False, True),
        "nifti": (False, True),
        "other": (False, False),
        "absent": (False, False),
    }
    assert [(form.name, form.manifest) for form in FORMATS] == [("sites", None), ("promise12", None)]


HK_LIST = ("Case00_segmentation.nii.gz",)


def write_order(source: Path, order, names=("Case01_segmentation.nii.gz", "Case00.nii.gz", "Case00_segmentation.nii.gz")) -> None:
    np.save(source / "HK-dir.npy", np.array(names))
    np.save(source / "HK-index.npy", np.array(order))


def test_harmofl_order(tmp_path):
    """Slices with gland of the masks in the order of the list, counted as the files are stored, then permuted."""
    write_case(tmp_path / "HK", "Case00")
    upside_down = LPS @ np.diag([1, 1, -1, 1])
    image, mask = volume(1)[..., ::-1], gland()[..., ::-1]
    write_case(tmp_path / "HK", "Case01", image=image, mask=mask, affine=upside_down)
    assert image_order(tmp_path, "HK") is None
    write_order(tmp_path, [5, 0, 1, 2, 3, 4])
    # The gland of Case01 is stored in slices 1 to 3 and counted from below as 4 to 2.
    assert image_order(tmp_path, "HK") == ["Case00_04", "Case01_04", "Case01_03", "Case01_02", "Case00_02", "Case00_03"]
    cases, _ = listed(tmp_path)
    pictures = {f"{case.name}_{picture.name}" for case in cases for picture in case.read()}
    assert set(image_order(tmp_path, "HK")) == pictures


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda root: (root / "HK-index.npy").unlink(), "HK-index.npy: not found"),
        (lambda root: write_order(root, [0, 1], names=HK_LIST), "HK-index.npy: orders 2 slices, expected each of the 3 with gland once"),
        (lambda root: write_order(root, [0, 1, 1], names=HK_LIST), "expected each of the 3"),
        (lambda root: write_order(root, [0.0, 1.0, 2.0]), "HK-index.npy: holds float64, expected a list of whole numbers"),
        (lambda root: write_order(root, [0, 1, 2], ["Case09_segmentation.nii.gz"]), "HK-dir.npy: names Case09_segmentation"),
        (lambda root: (root / "HK-dir.npy").write_bytes(b"x"), "HK-dir.npy: cannot be read"),
    ],
)
def test_unusable_harmofl_lists(tmp_path, write, message):
    write_case(tmp_path / "HK")
    write_order(tmp_path, [2, 0, 1], names=HK_LIST)
    assert len(image_order(tmp_path, "HK")) == 3
    write(tmp_path)
    with pytest.raises(SourceError, match=message):
        image_order(tmp_path, "HK")


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickled_list_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path / "HK")
    write_order(tmp_path, [0, 1, 2])
    np.save(tmp_path / "HK-dir.npy", np.array([_Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match=r"HK-dir.npy: cannot be read .*expected a list of file names saved as a plain numpy array"):
        image_order(tmp_path, "HK")
    assert not (tmp_path / "ran").exists()


@pytest.mark.real_data
def test_real_volumes(real_data_root):
    """All 50; the counts are those of the datasheet."""
    cases, findings = listed(real_data_root / "prostate")
    assert not findings.problems and len(findings.warnings) == 4
    assert Counter(case.center for case in cases) == {"BIDMC": 12, "HK": 12, "RUNMC": 13, "UCL": 13}
    slices = Counter()
    for case in cases:
        pictures = case.read()
        slices[case.center] += len(pictures)
        assert PROMISE12_CENTERS[int(case.name[4:])] == case.center
        assert all(picture.image.shape == (128, 128, 3) and picture.mask.any() for picture in pictures)
    assert slices == {"BIDMC": 194, "HK": 216, "RUNMC": 314, "UCL": 236}
