"""Volumes: what every form says of voxels and millilitres, the same to `prepare` and to `vfmgl predict`; and what is refused."""

import gzip
import struct
import zlib
from functools import partial

import nibabel as nib
import numpy as np
import onnx
import pytest
import SimpleITK as sitk
from onnx import TensorProto, helper
from PIL import Image

from vfmgl_lib.data.preprocessing import volume_slices
from vfmgl_lib.data.scan import SourceError
from vfmgl_lib.data.volumes import Grid, check_mask_grid, read_grid, read_mask, read_stored, read_volume, read_voxels
from vfmgl_lib.tasks.cases import Findings
from vfmgl_lib.tasks.prostate.reader import cases_promise12, cases_sites
from vfmgl_lib.tools import predict
from vfmgl_lib.tools.predict.files import predict_files

SHAPE, SPACING, SIDE = (12, 9, 6), (0.5, 0.75, 3.0), 8
LPS = np.diag([-0.5, -0.75, 3.0, 1.0])
LPS[:3, 3] = (20.0, 31.5, -40.25)
PIXELS = np.random.default_rng(0).integers(0, 100, SHAPE)
GLAND = np.zeros(SHAPE, np.uint8)
GLAND[2:7, 1:5, 2:5] = 1
UNITS = {"unknown": 1.0, "mm": 1.0, "micron": 1e3, "meter": 1e-3}
DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
FORMS = ("nii", "nii.gz", "nii2", "big", "mha", "mha packed", "mhd", "mhd packed")
FIELDS = {"dim": (40, "8h"), "pixdim": (76, "8f"), "vox_offset": (108, "f"), "slope": (112, "2f"), "xyzt_units": (123, "B")}
FIELDS |= {"qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "3f"), "magic": (344, "4s")}


def stored_as(codes: str) -> np.ndarray:
    """The turn that stores an array of LPS as `codes` say."""
    return nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(codes))


def write(path, array, form="nii", codes="LPS", unit="mm", axes=0, affine=LPS):
    """An array in LPS, written in a form, with its axes stored as `codes`, in a unit, and with further axes of length 1."""
    turn = stored_as(codes)
    turned = nib.orientations.apply_orientation(array, turn)
    affine = affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    if form.startswith("mh"):
        suffix, *packed = form.split()
        image = sitk.GetImageFromArray(turned.T)
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing)
        image.SetDirection((lps[:3, :3] / spacing).ravel())
        image.SetOrigin(lps[:3, 3])
        path = path.with_name(f"{path.name}.{suffix}")
        sitk.WriteImage(sitk.JoinSeries(image) if axes else image, str(path), bool(packed))
        return path
    factor = UNITS[unit]
    kind = nib.Nifti2Image if form == "nii2" else nib.Nifti1Image
    scaled = np.diag([factor, factor, factor, 1]) @ affine
    header = kind.header_class(endianness=">") if form == "big" else None
    image = kind(turned.reshape(turned.shape + (1,) * axes), scaled, header, dtype=array.dtype)
    image.set_qform(scaled, 1)
    image.set_sform(scaled, 1)
    image.header.set_xyzt_units(unit, "sec" if axes else None)
    path = path.with_name(f"{path.name}.nii.gz" if form == "nii.gz" else f"{path.name}.nii")
    nib.save(image, path)
    return path


def edited(path, **fields):
    """The NIfTI with fields of its header overwritten."""
    content = bytearray(path.read_bytes())
    for name, values in fields.items():
        place, kind = FIELDS[name]
        struct.pack_into(f"<{kind}", content, place, *values)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A segmentation of what is brighter than half, in the middle slice of three."""
    said = "0", "prostate", "segmentation", ("background", "prostate"), SIDE, ("image", "volume"), predict.PREPROCESSING, "image", None
    about = predict.Description(predict.FORMAT, *said, "test", {"model_center": "A"}, "none", "none", "float32", ())
    nodes = [("Gather", ["image", "one"], "c", {"axis": 1}), ("Sub", ["c", "half"], "f", {}), ("Neg", ["f"], "b", {})]
    nodes.append(("Concat", ["b", "f"], "logits", {"axis": 1}))
    graph = helper.make_graph(
        [helper.make_node(kind, given, [made], **options) for kind, given, made, options in nodes],
        "bright",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, SIDE, SIDE])],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1]), helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])],
    )
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(found, {predict.KEY: about.to_json()})
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    onnx.save(found, path)
    return predict.Predictor(path, threads=1)


def prepared(folder):
    """The pictures that `prepare` makes of the only case below a folder."""
    findings = Findings()
    nested = any(path.suffix in (".mhd", ".mha") for path in folder.rglob("*"))
    (case,) = (cases_promise12 if nested else cases_sites)(folder, findings)
    assert not findings.problems
    return case.read()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_voxels_and_milliliters(form, model, tmp_path):
    """Values x forms x orientations, with units and further axes in turn; by `prepare`'s reader and by `vfmgl predict`."""
    wanted = volume_slices(PIXELS.T, GLAND.T)
    expected = None
    for number, dtype in enumerate(DTYPES * 2):
        unit, codes, axes = list(UNITS)[number % 4], ("LPS", "RAS", "SPL", "AIR")[number // 4 % 4], number % 3
        folder, out = tmp_path / f"{number}", tmp_path / "out"
        array = PIXELS.astype(dtype)
        path = write(folder / "HK/Case00", array, form, codes, unit, axes)
        write(folder / "HK/Case00_segmentation", GLAND, form, codes, unit, axes)
        for picture, part in zip(prepared(folder), wanted, strict=True):
            assert np.array_equal(picture.image, part.image) and np.array_equal(picture.mask, part.mask), (dtype, codes)
            assert picture.spacing == (0.75, 0.5), (dtype, codes, unit)
        volume = read_volume(path, "x")
        assert np.array_equal(volume.voxels, array.T), (dtype, codes)
        table = predict_files(model, [(path, "case")], out)
        assert table.at[0, "error"] == ""
        mask = nib.load(out / table.at[0, "mask_file"])
        assert mask.shape[:3] == read_grid(path, "x").shape and np.asarray(mask.dataobj).sum() == table.at[0, "foreground"] > 50
        if not form.startswith("mh"):
            assert np.array_equal(mask.affine, nib.load(path).affine) and mask.shape == nib.load(path).shape
        else:
            assert np.allclose(mask.affine, read_grid(path, "x").affine, atol=1e-5)
        found = table.at[0, "foreground"], nib.as_closest_canonical(nib.funcs.squeeze_image(mask)).get_fdata()
        expected = expected or found
        assert found[0] == expected[0] and np.array_equal(found[1], expected[1]), (dtype, codes)
        assert table.at[0, "milliliters"] == pytest.approx(found[0] * 0.5 * 0.75 * 3 / 1000, rel=1e-5), (dtype, codes, unit)


COLORED = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])


def save_vector(path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 9, 12, 2), np.float32), isVector=True), str(path))


def written(array, axes=0):
    return lambda path: nib.save(nib.Nifti1Image(array[(...,) + (None,) * axes], LPS, dtype=array.dtype), path)


REFUSED = {
    "colours": ("x.nii", written(COLORED), "voxels are colours, vectors or complex, expected one real number each"),
    "complex": ("x.nii.gz", written(PIXELS.astype("c8")), "voxels are colours, vectors or complex"),
    "vectors": ("x.mha", save_vector, "voxels are colours, vectors or complex"),
    "complex MetaImage": (
        "x.mhd",
        lambda path: sitk.WriteImage(sitk.GetImageFromArray(PIXELS.astype("c8")), str(path)),
        "voxels are colours, vectors or complex|ITK cannot read it",
    ),
    "a series": ("x.nii", written(PIXELS.astype("i2")[..., None].repeat(3, -1)), r"has 4 dimensions \(12 x 9 x 6 x 3\), expected 3"),
    "a series at the fifth": ("x.nii", written(np.zeros((4, 4, 4, 1, 2), "u1")), r"has 5 dimensions \(4 x 4 x 4 x 1 x 2\), expected 3"),
    "a series as MetaImage": (
        "x.mha",
        lambda path: sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(PIXELS.astype("i2"))] * 2), str(path)),
        r"has 4 dimensions \(6 x 9 x 12 x 2\), expected 3",
    ),
    "a picture": ("x.nii", written(np.zeros((5, 4), "u1")), r"has 2 dimensions \(5 x 4\), expected 3"),
    "a flat MetaImage": ("x.mha", lambda p: sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 4), "u1")), str(p)), "has 2 dimensions"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_volume_of_numbers_is_refused_by_all(kind, model, tmp_path):
    name, make, message = REFUSED[kind]
    make(tmp_path / name)
    for read in (read_grid, read_volume, read_stored):
        with pytest.raises(SourceError, match=rf"^the file: .*({message})"):
            read(tmp_path / name, "the file")
    error = predict_files(model, [(tmp_path / name, "case")], tmp_path).at[0, "error"]
    assert error.startswith(str(tmp_path / name)) and "\n" not in error


def plain(tmp_path, **fields):
    return edited(write(tmp_path / "x", PIXELS.astype("i2")), **fields)


@pytest.mark.parametrize(
    ("matrix", "milliliters"),
    [
        ([[-0.5, 0, 0], [0, -0.75, 1.2], [0, 0, 3]], 0.5 * 0.75 * 3),  # sheared: slices are shifted, not larger
        ([[-0.4, 0.45, 0], [-0.3, -0.6, 0], [0, 0, 3]], 0.5 * 0.75 * 3),  # turned by 37 degrees
        ([[-0.5, 0.3, 0], [0, -0.75, 0], [0, 0, 3]], 0.5 * 0.75 * 3),
    ],
)
def test_a_sheared_or_turned_volume_is_measured_by_its_determinant(matrix, milliliters, tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = matrix
    nib.save(nib.Nifti1Image(PIXELS.astype("i2"), affine), tmp_path / "x.nii")
    assert read_volume(tmp_path / "x.nii", "x").grid.milliliters == pytest.approx(milliliters / 1000, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({}, (0.5, 0.75, 3)),
        ({"xyzt_units": (0,)}, (0.5, 0.75, 3)),
        ({"xyzt_units": (2 + 32,)}, (0.5, 0.75, 3)),  # a unit of time without meaning here
        ({"pixdim": (1, -0.5, -0.75, 3, 0, 0, 0, 0), "sform_code": (0,)}, (0.5, 0.75, 3)),  # Analyze's signs
        ({"pixdim": (0, 0.5, 0.75, 3, 0, 0, 0, 0), "sform_code": (0,)}, (0.5, 0.75, 3)),
        ({"pixdim": (1, -0.5, 0.75, 3, 0, 0, 0, 0), "sform_code": (0,), "qform_code": (0,)}, (0.5, 0.75, 3)),
        ({"pixdim": (1, 9, 9, 9, 0, 0, 0, 0), "qform_code": (0,)}, (0.5, 0.75, 3)),  # the sform counts
        ({"pixdim": (1, 0, 0, 0, 0, 0, 0, 0)}, (0.5, 0.75, 3)),  # no qform that could be compared
        ({"quatern": (2, 2, 2)}, (0.5, 0.75, 3)),
        ({"pixdim": (0,) * 8, "sform_code": (0,), "qform_code": (0,)}, None),
        ({"pixdim": (1,) * 8, "sform_code": (0,), "qform_code": (0,)}, None),
    ],
)
def test_spacing_of_a_nifti(fields, sizes, tmp_path):
    path = plain(tmp_path, **fields)
    grid = read_grid(path, "x")
    assert (grid.spacing.tolist() == pytest.approx(sizes)) if sizes else (not grid.spaced and grid.milliliters is None)
    assert read_stored(path, "x").spacing == (pytest.approx((sizes[1], sizes[0])) if sizes else None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"xyzt_units": (5,)}, r"xyzt_units is 5, which is none of m \(1\), mm \(2\) and micron \(3\)"),
        ({"xyzt_units": (1,)}, r"voxels of 500 x 750 x 3000 mm \(unit: m\), expected 0.01 to 100 mm; correct the header"),
        ({"xyzt_units": (3,)}, r"voxels of 0.0005 x 0.00075 x 0.003 mm \(unit: micron\), expected 0.01 to 100 mm"),
        (
            {"xyzt_units": (3,), "pixdim": (1, 0.4, 0.4, 3, 0, 0, 0, 0), "sform_code": (0,)},
            "voxels of 0.0004 x 0.0004 x 0.003 mm .unit: mic",
        ),
        ({"pixdim": (1, 0.5, 0, 3, 0, 0, 0, 0), "sform_code": (0,)}, "pixdim gives voxels of 0.5 x 0 x 3, expected sizes above 0"),
        (
            {"pixdim": (1, 0.5, 0.75, 0, 0, 0, 0, 0), "sform_code": (0,), "qform_code": (0,)},
            "pixdim gives voxels of 0.5 x 0.75 x 0, expected sizes above 0",
        ),
        ({"pixdim": (1, np.nan, 0.75, 3, 0, 0, 0, 0), "sform_code": (0,)}, "pixdim gives voxels of nan x 0.75 x 3"),
        ({"pixdim": (1, 0.6, 0.75, 3, 0, 0, 0, 0)}, "sform gives voxels of 0.5 x 0.75 x 3, qform of 0.6 x 0.75 x 3; correct the one"),
        ({"quatern": (0, 0, 0)}, "sform says that the axes run to LPS, qform to RAS; correct the one that is wrong"),
        ({"magic": (b"ni1\0",), "vox_offset": (0,)}, r"a header without voxels \(Analyze, or a pair .hdr and .img\), expected one .nii"),
        ({"magic": (b"\0\0\0\0",), "vox_offset": (0,)}, "a header without voxels"),
        ({"vox_offset": (0,)}, r"cannot be decoded \(vox_offset is 0, expected at least 352\)"),
        ({"vox_offset": (np.nan,)}, "cannot be decoded"),
        ({"vox_offset": (1e6,)}, "cannot be decoded .1000.* bytes, expected|cannot be decoded"),
        ({"dim": (3, 12, 9, 7, 1, 1, 1, 1)}, r"cannot be decoded \(1648 bytes, expected 1864\)"),
        ({"dim": (3, 12, -9, 6, 1, 1, 1, 1)}, "claims 12 x -9 x 6 voxels"),
        ({"dim": (0, 12, 9, 6, 1, 1, 1, 1)}, "has . dimensions"),
        ({"slope": (2, np.nan)}, "cannot be decoded .Valid slope but invalid intercept"),
    ],
)
def test_headers_that_contradict_themselves_are_refused(fields, message, tmp_path):
    path = plain(tmp_path, **fields)
    for read in (read_volume, read_stored):
        with pytest.raises(SourceError, match=rf"^the file: ({message})"):
            read(path, "the file")


@pytest.mark.parametrize(("apart", "refused"), [(0.02, False), (4, True)])
def test_two_forms_about_halfway_between_directions(apart, refused, tmp_path):
    """At 45° the nearest directions of two matrices differ, however little these do."""
    forms = []
    for angle in np.radians((45 - apart / 2, 45 + apart / 2)):
        turn = np.eye(4)
        turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        forms.append(turn @ np.diag([-0.5, -0.5, 3, 1]))
    image = nib.Nifti1Image(PIXELS.astype("i2"), forms[0])
    image.set_sform(forms[0], 1)
    image.set_qform(forms[1], 1)
    nib.save(image, tmp_path / "v.nii")
    if refused:
        with pytest.raises(SourceError, match="sform says that the axes run to LPS, qform to LIP"):
            read_grid(tmp_path / "v.nii", "x")
    else:
        assert np.allclose(read_grid(tmp_path / "v.nii", "x").affine, forms[0], atol=1e-6)


@pytest.mark.parametrize(("slope", "factor", "add"), [((0, 7), 1, 0), ((np.nan, 7), 1, 0), ((0.25, 10), 0.25, 10), ((-1, 0), -1, 0)])
def test_scaled_values(slope, factor, add, tmp_path):
    assert np.array_equal(read_voxels(plain(tmp_path, slope=slope), "x"), PIXELS * factor + add)


def test_gzip_is_known_by_its_content(tmp_path):
    content = plain(tmp_path).read_bytes()
    (tmp_path / "zipped.nii").write_bytes(gzip.compress(content))
    (tmp_path / "plain.nii.gz").write_bytes(content)
    for name in ("zipped.nii", "plain.nii.gz"):
        assert np.array_equal(read_volume(tmp_path / name, "x").voxels, PIXELS.T)
    damaged = bytearray(gzip.compress(content, compresslevel=0))
    damaged[-100] ^= 1
    (tmp_path / "damaged.nii").write_bytes(damaged)
    with pytest.raises(SourceError, match="CRC check failed"):
        read_voxels(tmp_path / "damaged.nii", "x")


HEADER = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 12 9 6\nElementType = MET_SHORT\n"
VOXELS = np.ascontiguousarray(PIXELS.astype("<i2").T).tobytes()
PACKED = zlib.compress(VOXELS)
SPACED = "ElementSpacing = 0.5 0.75 3\n"
META = {
    "spacing": (SPACED, VOXELS, SPACING),
    "size": ("ElementSize = 0.5 0.75 3\n", VOXELS, SPACING),
    "no spacing": ("TransformMatrix = 0 1 0 -1 0 0 0 0 1\n", VOXELS, None),
    "negative spacing": ("ElementSpacing = -0.5 0.75 3\n", VOXELS, SPACING),
    "micron": ("ElementSpacing = 500 750 3000\nDistanceUnits = um\n", VOXELS, SPACING),
    "centimetres": ("ElementSpacing = .05 .075 .3\nDistanceUnits = cm\n", VOXELS, SPACING),
    "big endian": (f"{SPACED}ElementByteOrderMSB = True\n", PIXELS.astype(">i2").T.tobytes(), SPACING),
    "big endian, binary": (f"{SPACED}BinaryDataByteOrderMSB = True\n", PIXELS.astype(">i2").T.tobytes(), SPACING),
    "something before the voxels": (f"{SPACED}HeaderSize = -1\n", b"x" * 10 + VOXELS, SPACING),
    "packed": (f"{SPACED}CompressedData = True\nCompressedDataSize = {len(PACKED)}\n", PACKED, SPACING),
    "line ends of Windows": (SPACED.replace("\n", "\r\n"), VOXELS, SPACING),
}


def meta(path, fields, voxels):
    path.write_bytes(f"{HEADER}{fields}ElementDataFile = LOCAL\n".encode() + voxels)
    return path


@pytest.mark.parametrize("kind", META)
def test_meta_images(kind, tmp_path):
    fields, voxels, spacing = META[kind]
    path = meta(tmp_path / "x.mha", fields, voxels)
    grid = read_grid(path, "x")
    assert np.array_equal(read_voxels(path, "x"), PIXELS)
    assert grid.spacing.tolist() == pytest.approx(spacing) if spacing else (not grid.spaced and grid.oriented)
    assert grid.milliliters == (pytest.approx(np.prod(spacing) / 1000) if spacing else None)


@pytest.mark.parametrize(
    ("fields", "voxels", "message"),
    [
        (SPACED, VOXELS[:-10], "cannot be decoded"),
        (f"{SPACED}HeaderSize = 10\n", b"x" * 10 + VOXELS, "HeaderSize is 10 with the voxels in the same file, expected none"),
        (f"{SPACED}CompressedData = True\n", PACKED, "cannot be decoded .CompressedDataSize 0 unpacks to 0 bytes of 1296"),
        (f"{SPACED}CompressedData = True\nCompressedDataSize = {len(PACKED) - 9}\n", PACKED[:-9], "cannot be decoded .CompressedDataSize"),
        ("ElementSpacing = 0.5 0.75 0\n", VOXELS, "not a readable MetaImage file|spacings above 0"),
        ("ElementSpacing = 0,5 0,75 3\n", VOXELS, "not a readable MetaImage file|spacings above 0"),
        (f"{SPACED}DistanceUnits = inch\n", VOXELS, "DistanceUnits is 'inch', expected one of um, mm and cm"),
        (f"{SPACED}ElementNumberOfChannels = 2\n", VOXELS * 2, "voxels are colours, vectors or complex"),
        ("ElementSpacing = 500 750 3000\n", VOXELS, r"voxels of 500 x 750 x 3000 mm \(unit: none, read as mm\), expected 0.01 to 100 mm"),
    ],
)
def test_unusable_meta_images(fields, voxels, message, tmp_path):
    path = meta(tmp_path / "x.mha", fields, voxels)
    with pytest.raises(SourceError, match=rf"^the file: .*({message})"):
        read_volume(path, "the file")


read_label = partial(read_mask, name="m", allowed=(0, 1, 2), expected="0 and 1")


@pytest.mark.parametrize("header", ["i2", "u1", "f4", "f8"])
def test_masks_near_whole_numbers_are_rounded(header, tmp_path):
    """Saved as float64 under a header of whole numbers, nibabel scales and 1 becomes 0.9999…"""
    image = nib.Nifti1Image(GLAND.astype(np.float64) * 0.9995, LPS, nib.Nifti1Image(GLAND, LPS, dtype=header).header)
    nib.save(image, tmp_path / "m.nii")
    assert np.array_equal(read_label(tmp_path / "m.nii"), GLAND)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.998, "m: values of the mask: found 0.998, expected whole numbers"),
        (np.inf, "m: values of the mask: found inf"),
        (254.9999, "m: mask holds 0, 255, expected 0 and 1"),
        (-1, "m: mask holds -1, 0, expected 0 and 1"),
    ],
)
def test_other_values_of_a_mask_are_refused(value, message, tmp_path):
    nib.save(nib.Nifti1Image(np.where(GLAND, np.float64(value), 0), LPS), tmp_path / "m.nii")
    with pytest.raises(SourceError, match=message):
        read_label(tmp_path / "m.nii")


def test_a_mask_lies_on_its_volumes_grid_in_whatever_unit(tmp_path):
    grid = read_grid(write(tmp_path / "v", PIXELS.astype("i2")), "v")
    for unit in UNITS:
        check_mask_grid(read_grid(write(tmp_path / "m", GLAND, unit=unit), "m"), grid, "m", "v")
    with pytest.raises(SourceError, match="m: lies on another grid than v: directions"):
        check_mask_grid(read_grid(write(tmp_path / "m", GLAND, codes="RPS"), "m"), grid, "m", "v")


def test_axes_are_those_of_dicom():
    grid = Grid(SHAPE, LPS, True, True)
    assert np.array_equal(grid.axes, np.eye(3)) and Grid(SHAPE, LPS, False, True).axes is None


def test_a_wrong_mask_is_no_file(tmp_path):
    volume = read_volume(write(tmp_path / "x", PIXELS.astype("i2")), "x")
    with pytest.raises(ValueError, match="mask must have the volume's shape"):
        volume.mask_file(np.zeros((2, 2, 2), np.uint8))


def test_a_mask_says_of_its_volume_where_it_lies_and_no_more(tmp_path):
    image = nib.Nifti1Image(PIXELS.astype("i2"), LPS)
    image.header.set_intent("t test", (3,))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(2, b"DOE^JANE"))  # DICOM's header, as some converters add it
    nib.save(image, tmp_path / "v.nii")
    content = read_volume(tmp_path / "v.nii", "x").mask_file(GLAND.T)
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert b"DOE" not in gzip.decompress(content) and mask.header.get_intent()[0] == "none"
    assert np.array_equal(mask.affine, LPS) and np.array_equal(np.asarray(mask.dataobj), GLAND)


def test_an_image_is_no_volume(model, tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.nii")
    assert "not a readable NIfTI file" in predict_files(model, [(tmp_path / "x.nii", "x")], tmp_path).at[0, "error"]


@pytest.mark.parametrize("count", ["-1", "0", "99", "-1e9", "", "x"])
def test_a_damaged_number_of_dimensions_is_refused(tmp_path, count):
    """With some of these ITK ends the process."""
    path = write(tmp_path / "x", PIXELS.astype("i2"), "mha")
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", f"NDims = {count}".encode()))
    for read in (read_grid, read_volume, read_stored):
        with pytest.raises(SourceError, match=f"^x: NDims is '{count}', expected 3"):
            read(path, "x")
