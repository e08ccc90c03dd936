"""The three downloads in small: what is recognised, which centre and patient a tile gets, its mask, and each bad input."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from vfmgl_lib.data import images
from vfmgl_lib.tasks.cases import Findings, SourceError
from vfmgl_lib.tasks.folders import read_folders
from vfmgl_lib.tasks.nuclei import reader as nuclei
from vfmgl_lib.tasks.nuclei.reader import FORMATS, ORGANS, TISSUE_SOURCE_SITES, cases_downloads, hospital, organ, recognise_downloads

SIZE = (12, 10)  # width, height
SQUARE = [(2, 3), (6, 3), (6, 8), (2, 8)]
OTHER = [(7, 1), (11, 1), (11, 4), (7, 4)]
MONUSAC_TILES = {
    "TCGA-55-1594-01Z-00-DX1": ("_001", "_002"),  # lung
    "TCGA-EJ-5495-01Z-00-DX1": ("-1",),  # prostate, with the other of the challenge's two separators
    "TCGA-5P-A9K0-01Z-00-DX1": ("_1",),  # kidney
    "TCGA-A2-A0CV-01Z-00-DX1": ("_1",),  # breast
}


def pixels(seed, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], channels), dtype=np.uint8)


def save(path, seed, channels=3, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, channels)).save(path, format="PNG" if path.suffix == ".png" else "TIFF", **options)
    return path


def save_svs(path, seed):
    """As an Aperio slide: tiled, the full resolution first, a thumbnail and a label behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels(seed), tile=(16, 16), photometric="rgb", description="Aperio Image Library v11.2.1|AppMag = 40")
        file.write(pixels(seed)[::2, ::2], photometric="rgb")
        file.write(pixels(seed)[:4, :3], photometric="rgb")
    return path


def annotate(path, **layers):
    """One layer a class; a region is a list of points, or (points, attributes)."""
    parts = []
    for number, (name, regions) in enumerate(layers.items(), 1):
        inner = ""
        for count, region in enumerate(regions, 1):
            points, given = region if isinstance(region, tuple) else (region, {})
            extra = "".join(f' {key}="{value}"' for key, value in given.items())
            vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
            inner += f'<Region Id="{count}" NegativeROA="0"{extra}><Attributes/><Vertices>{vertices}</Vertices></Region>'
        attributes = f'<Attributes><Attribute Name="{name}" Id="0" Value=""/></Attributes>'
        parts.append(f'<Annotation Id="{number}">{attributes}<Regions><RegionAttributeHeaders/>{inner}</Regions></Annotation>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<?xml version="1.0"?><Annotations MicronsPerPixel="0.2520">{"".join(parts)}</Annotations>', encoding="utf-8")
    return path


@pytest.fixture
def monuseg(tmp_path):
    root = tmp_path / "MoNuSeg"
    training = root / "MoNuSeg 2018 Training Data" / "MoNuSeg 2018 Training Data"  # the archive unpacks this way
    for seed, name in enumerate(("TCGA-18-5592-01Z-00-DX1", "TCGA-AY-A8YK-01A-01-TS1")):
        save(training / "Tissue Images" / f"{name}.tif", seed, compression="tiff_lzw")
        annotate(training / "Annotations" / f"{name}.xml", Description=[SQUARE, OTHER])
    save(root / "MoNuSegTestData" / "TCGA-2Z-A9J9-01A-01-TS1.tif", 2)
    annotate(root / "MoNuSegTestData" / "TCGA-2Z-A9J9-01A-01-TS1.xml", Description=[SQUARE])
    return root


@pytest.fixture
def monusac(tmp_path):
    root = tmp_path / "MoNuSAC"
    seed = 10
    for folder, numbers in MONUSAC_TILES.items():
        for number in numbers:
            seed += 1
            tile = root / "MoNuSAC_images_and_annotations" / folder / f"{folder}{number}"
            save_svs(tile.with_suffix(".svs"), seed)
            save(tile.with_suffix(".tif"), seed, channels=4)
            annotate(tile.with_suffix(".xml"), Epithelial=[SQUARE], Lymphocyte=[OTHER], Neutrophil=[], Macrophage=[])
    return root


@pytest.fixture
def tnbc(tmp_path):
    root = tmp_path / "TNBC_NucleiSegmentation"
    for number, tiles in (("01", 2), ("11", 1)):
        for tile in range(1, tiles + 1):
            name = f"{number}_{tile}.png"
            save(root / f"Slide_{number}" / name, 30 + int(number) + tile)
            values = np.resize(np.array((0, 255), np.uint8), SIZE[::-1])
            (root / f"GT_{number}").mkdir(exist_ok=True)
            Image.fromarray(values).save(root / f"GT_{number}" / name)
    return root


def listed(root):
    findings = Findings()
    return cases_downloads(root, findings), findings


def problems(root):
    return listed(root)[1].problems


def expected_mask(*squares):
    mask = np.zeros(SIZE[::-1], np.uint8)
    for (left, top), _, (right, bottom), _ in squares:
        mask[top:bottom, left:right] = 1
    return mask


def test_all_three_in_one_folder(monuseg, monusac, tnbc):
    cases, findings = listed(monuseg.parent)
    assert findings == Findings()
    assert Counter((case.center, case.patient) for case in cases) == {
        ("SiteA", "TCGA-55-1594"): 2,
        ("SiteB", "TCGA-EJ-5495"): 1,
        ("SiteC", "TCGA-5P-A9K0"): 1,
        ("SiteD", "TCGA-A2-A0CV"): 1,
        ("SiteE", "TCGA-18-5592"): 1,
        ("SiteE", "TCGA-AY-A8YK"): 1,
        ("SiteE", "TCGA-2Z-A9J9"): 1,
        ("SiteF", "01"): 2,
        ("SiteF", "11"): 1,
    }
    assert {case.name for case in cases if case.center in "SiteA SiteB SiteF"} == {
        "TCGA-55-1594-01Z-00-DX1_001",
        "TCGA-55-1594-01Z-00-DX1_002",
        "TCGA-EJ-5495-01Z-00-DX1-1",
        "01_1",
        "01_2",
        "11_1",
    }
    assert all(case.split == "" and case.label == "" and all(path.is_file() for path in case.files) for case in cases)
    for case in cases:
        (picture,) = case.read()
        assert picture.name == "" and picture.spacing is None
        assert (picture.image.shape, picture.image.dtype) == ((SIZE[1], SIZE[0], 3), np.uint8)
        assert picture.mask.dtype == np.uint8 and set(np.unique(picture.mask)) == {0, 1}


@pytest.mark.parametrize("which", ["monuseg", "monusac", "tnbc"])
def test_each_is_recognised_at_every_level_and_alone(which, request):
    root = request.getfixturevalue(which)
    assert recognise_downloads(root) and recognise_downloads(root.parent)
    assert all(recognise_downloads(folder) for folder in root.iterdir() if folder.name.startswith("MoNu"))
    assert listed(root)[0] and not problems(root)
    assert FORMATS[1].recognise(root) and FORMATS[1].manifest is None


def test_other_folders_are_not_recognised(tmp_path):
    assert not recognise_downloads(tmp_path) and not recognise_downloads(tmp_path / "missing")
    save(tmp_path / "SiteA" / "train" / "images" / "TCGA-18-5592-01Z-00-DX1_0_500.png", 1)
    (tmp_path / "SiteA" / "train" / "labels").mkdir()
    (tmp_path / "notes.xml").write_text("<a/>")
    assert not recognise_downloads(tmp_path) and not recognise_downloads(tmp_path / "notes.xml")


def test_masks_are_painted(monuseg, monusac):
    by_name = {case.name: case.read()[0] for case in listed(monuseg.parent)[0]}
    assert (by_name["TCGA-18-5592-01Z-00-DX1"].mask == expected_mask(SQUARE, OTHER)).all()
    assert (by_name["TCGA-2Z-A9J9-01A-01-TS1"].mask == expected_mask(SQUARE)).all()
    assert (by_name["TCGA-55-1594-01Z-00-DX1_001"].mask == expected_mask(SQUARE, OTHER)).all()  # two classes, one nucleus
    assert (by_name["TCGA-18-5592-01Z-00-DX1"].image == pixels(0)).all()


def test_the_slide_comes_first_and_gives_its_full_resolution(monusac):
    (case, *_), findings = listed(monusac)
    assert case.files[0].suffix == ".svs" and not findings.warnings
    assert (case.read()[0].image == pixels(11)).all()


def test_the_tif_is_read_where_the_slide_cannot_be(monusac):
    slide = next(monusac.rglob("*1594*_001.svs"))
    slide.write_bytes(b"JPEG 2000, say")
    cases, findings = listed(monusac)
    assert cases[0].files[0] == slide.with_suffix(".tif")
    color, alpha = np.split(pixels(11, 4).astype(float), [3], axis=2)
    on_white = (color * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(cases[0].read()[0].image - on_white).max() <= 0.51
    assert findings.warnings == [
        f"1 tile(s) are read from .tif, as their .svs cannot be, e.g. {slide.with_suffix('.tif').relative_to(monusac)}"
    ]
    slide.unlink()
    assert listed(monusac)[1].warnings == []


def test_a_slide_compressed_in_aperios_own_way(monusac):
    slide = next(monusac.rglob("*A9K0*.svs"))
    with tifffile.TiffFile(slide, mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(33005)  # JPEG 2000, which Pillow does not read in a TIFF
    slide.with_suffix(".tif").unlink()
    expected = "samples of 8 bits, compressed as APERIO_JP2000_RGB, cannot be decoded; save it uncompressed or with deflate"
    assert problems(monusac) == [f"{slide.relative_to(monusac)}: {expected}"]


def test_ambiguous_regions_stay_background_and_are_counted(monusac):
    path = next(monusac.rglob("*A9K0*.xml"))
    annotate(path, Epithelial=[SQUARE], Ambiguous=[OTHER, [(900, 900), (901, 901)]])
    cases, findings = listed(monusac)
    case = next(case for case in cases if case.patient == "TCGA-5P-A9K0")
    assert (case.read()[0].mask == expected_mask(SQUARE)).all()
    assert findings.problems == []
    assert findings.warnings == [f"2 region(s) 'Ambiguous' stay background, in 1 file(s), e.g. 2 in {path.relative_to(monusac)}"]


def test_unknown_class(monusac):
    path = next(monusac.rglob("*A9K0*.xml"))
    annotate(path, Epithelial=[SQUARE], Macrophages=[OTHER, OTHER], Description=[])  # an unnamed layer without a region is none
    cases, findings = listed(monusac)
    expected = "expected one of Epithelial, Lymphocyte, Macrophage, Neutrophil, Ambiguous"
    assert findings.problems == [f"{path.relative_to(monusac)}: class 'Macrophages' of 2 region(s), {expected}"]
    with pytest.raises(SourceError, match="'Macrophages' of 2 region"):
        next(case for case in cases if case.patient == "TCGA-5P-A9K0").read()


def test_classes_mean_nothing_in_monuseg(monuseg):
    annotate(next(monuseg.rglob("*5592*.xml")), Description=[SQUARE], Anything=[OTHER])
    cases, findings = listed(monuseg)
    assert findings == Findings()
    case = next(case for case in cases if case.patient == "TCGA-18-5592")
    assert (case.read()[0].mask == expected_mask(SQUARE, OTHER)).all()


def test_bad_outlines_are_all_reported(monuseg):
    path = next(monuseg.rglob("*5592*.xml"))
    annotate(path, Description=[SQUARE, [(1, 1), (2, 2)], [(50, 50), (60, 50), (60, 60)], [("a", 1), (2, 2), (3, 3)]])
    next(monuseg.rglob("*A8YK*.xml")).write_text("<Annotations>")
    title = path.relative_to(monuseg)
    found = problems(monuseg)
    assert len(found) == 4
    assert f"{title}: region '2' has 2 distinct point(s), expected at least 3" in found
    assert f"{title}: region '3' lies outside of its tile (x 50 to 60, y 50 to 60), expected within 12 x 10" in found
    assert f"{title}: region '4': vertex 1 is at X='a', Y='1', expected two numbers up to 1000000" in found
    assert any("TCGA-AY-A8YK-01A-01-TS1.xml: not readable XML" in problem for problem in found)


def test_what_is_left_out_of_masks_is_said(monuseg):
    annotate(next(monuseg.rglob("*5592*.xml")), Description=[[(-4, 3), (6, 3), (6, 8), (-4, 8)], ([(1, 1), (2, 2)], {"Area": "0.0"})])
    annotate(next(monuseg.rglob("*A9J9*.xml")), Description=[])
    cases, findings = listed(monuseg)
    assert findings.problems == []
    folder = "MoNuSeg 2018 Training Data/MoNuSeg 2018 Training Data/Annotations/TCGA-18-5592-01Z-00-DX1.xml"
    assert findings.warnings == [
        f"1 annotation(s) leave their tile and are cut off at its edge, in 1 file(s), e.g. 1 in {folder}",
        f"1 region(s) of fewer than 3 points and no area, clicks that drew nothing, are left out, in 1 file(s), e.g. 1 in {folder}",
        "1 tile(s) have no annotated nucleus, in 1 file(s), e.g. 1 in MoNuSegTestData/TCGA-2Z-A9J9-01A-01-TS1.xml",
    ]
    masks = {case.patient: case.read()[0].mask for case in cases}
    assert masks["TCGA-18-5592"].sum() == 30 and not masks["TCGA-2Z-A9J9"].any()


def test_entity_bomb_is_refused(monuseg):
    path = next(monuseg.rglob("*A9J9*.xml"))
    path.write_text('<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><Annotations>&c;</Annotations>')
    (problem,) = problems(monuseg)
    assert problem.startswith(f"{path.relative_to(monuseg)}: not readable XML (EntitiesForbidden")


def test_byte_order_mark(monuseg):
    path = next(monuseg.rglob("*A9J9*.xml"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    cases, findings = listed(monuseg)
    assert findings == Findings() and cases[-1].patient == "TCGA-2Z-A9J9"
    assert cases[-1].read()[0].mask.any()


def test_partners_that_are_missing(monuseg, monusac, tnbc):
    for pattern in ("*5592*.xml", "*A8YK*.tif", "*A9J9*.xml", "*A9K0*.tif", "*A9K0*.svs", "GT_11/11_1.png", "Slide_01/01_2.png"):
        next(monuseg.parent.rglob(pattern)).unlink()
    training = "MoNuSeg/MoNuSeg 2018 Training Data/MoNuSeg 2018 Training Data"
    kidney = "MoNuSAC/MoNuSAC_images_and_annotations/TCGA-5P-A9K0-01Z-00-DX1/TCGA-5P-A9K0-01Z-00-DX1_1"
    lung, colon, test = "TCGA-18-5592-01Z-00-DX1", "TCGA-AY-A8YK-01A-01-TS1", "MoNuSeg/MoNuSegTestData/TCGA-2Z-A9J9-01A-01-TS1"
    missing, alone = "annotations are missing, expected", "annotations without image, expected"
    assert sorted(problems(monuseg.parent)) == sorted(
        [
            f"{training}/Tissue Images/{lung}.tif: {missing} {training}/Annotations/{lung}.xml",
            f"{training}/Annotations/{colon}.xml: {alone} {training}/Tissue Images/{colon}.tif",
            f"{test}.tif: {missing} {test}.xml",
            f"{kidney}.xml: {alone} {kidney}.tif",
            "TNBC_NucleiSegmentation/Slide_11/11_1.png: mask is missing, expected TNBC_NucleiSegmentation/GT_11/11_1.png",
            "TNBC_NucleiSegmentation/GT_01/01_2.png: mask without image, expected TNBC_NucleiSegmentation/Slide_01/01_2.png",
        ]
    )


def test_names_that_are_no_barcode_or_in_the_wrong_folder(monuseg, monusac):
    for suffix in (".tif", ".xml"):
        source = next(monuseg.rglob(f"*A9J9*{suffix}"))
        shutil.copy(source, source.with_name(f"kidney 3{suffix}"))
        shutil.copy(source, next(monusac.rglob("TCGA-A2*")) / source.name)
    found = problems(monuseg.parent)
    assert found == [
        "MoNuSAC/MoNuSAC_images_and_annotations/TCGA-A2-A0CV-01Z-00-DX1/TCGA-2Z-A9J9-01A-01-TS1.tif: is in the folder of TCGA-A2-A0CV,"
        " expected a tile of that patient",
        "MoNuSeg/MoNuSegTestData/kidney 3.tif: name is no TCGA barcode, expected TCGA-<site>-<patient>…",
    ]


def test_tissue_source_sites_that_do_not_fit(monusac):
    parent = monusac / "MoNuSAC_images_and_annotations"
    for code in ("QQ", "DK"):  # unknown; bladder
        folder = f"TCGA-{code}-A0CV-01Z-00-DX1"
        shutil.copytree(parent / "TCGA-A2-A0CV-01Z-00-DX1", parent / folder)
        for file in (parent / folder).iterdir():
            file.rename(file.with_name(file.name.replace("-A2-", f"-{code}-")))
    bladder, unknown = problems(monusac)
    assert "TCGA-DK-A0CV-01Z-00-DX1_1.svs: tissue source site 'DK' belongs to the study BLCA, expected one of LUAD," in bladder
    assert "tissue source site 'QQ' is unknown, expected in TISSUE_SOURCE_SITES of vfmgl_lib.tasks.nuclei.reader" in unknown
    assert nuclei.SITE_TABLE in unknown


def test_hospitals_and_organs():
    assert hospital("TCGA-E2-A1B5-01Z-00-DX1") == "Roswell Park" == hospital("TCGA-G9-6336-01Z-00-DX1")
    assert (organ("TCGA-E2-A1B5"), organ("TCGA-G9-6336"), organ("TCGA-B0-5698"), organ("TCGA-18-5592")) == (
        "breast",
        "prostate",
        "kidney",
        "lung",
    )
    for wrong in ("TCGA-QQ-A1B5", "02_1", "TCGA-E2", ""):
        with pytest.raises(SourceError, match=r"TISSUE_SOURCE_SITES|no TCGA barcode"):
            hospital(wrong)
    assert set(ORGANS.values()) == set(nuclei.ORGAN_CENTERS)
    assert all(study and name for study, name in TISSUE_SOURCE_SITES.values())


def test_a_patient_of_both_sets(monuseg, monusac):
    parent = monusac / "MoNuSAC Testing Data and Annotations" / "TCGA-F9-A8NY-01Z-00-DX1"
    save(parent / "TCGA-F9-A8NY-01Z-00-DX1_1.tif", 70)
    annotate(parent / "TCGA-F9-A8NY-01Z-00-DX1_1.xml", Lymphocyte=[SQUARE])
    training = next(monuseg.rglob("Tissue Images"))
    for patient in ("TCGA-F9-A8NY", "TCGA-55-1594"):  # known to be in both; not known to be, so it stays for the manifest's check
        save(training / f"{patient}-01Z-00-DX1.tif", 71)
        annotate(training.with_name("Annotations") / f"{patient}-01Z-00-DX1.xml", Description=[SQUARE])
    assert {case.center for case in listed(monuseg)[0] if case.patient == "TCGA-F9-A8NY"} == {"SiteE"}
    cases, findings = listed(monuseg.parent)
    homes = {patient: {case.center for case in cases if case.patient == patient} for patient in ("TCGA-F9-A8NY", "TCGA-55-1594")}
    assert homes == {"TCGA-F9-A8NY": {"SiteC"}, "TCGA-55-1594": {"SiteA", "SiteE"}}
    (warning,) = findings.warnings
    assert warning.endswith("TCGA-F9-A8NY-01Z-00-DX1.tif: left out, TCGA-F9-A8NY has tiles in MoNuSAC too and can be in one centre only")


def test_a_name_twice_in_a_centre(monusac):
    training = monusac / "MoNuSAC_images_and_annotations" / "TCGA-A2-A0CV-01Z-00-DX1"
    testing = monusac / "MoNuSAC Testing Data and Annotations" / training.name
    shutil.copytree(training, testing)
    cases, findings = listed(monusac)
    assert [case.name for case in cases if case.center == "SiteD"] == [f"{training.name}_1"] and findings.problems == []
    (copied,) = findings.warnings
    assert (
        copied.startswith("MoNuSAC_images_and_annotations/TCGA-A2-A0CV-01Z-00-DX1/")
        and ".svs: left out, a copy of MoNuSAC Testing" in copied
    )
    annotate(testing / f"{training.name}_1.xml", Epithelial=[OTHER])
    cases, findings = listed(monusac)
    assert [case.name for case in cases if case.center == "SiteD"] == [f"{training.name}_1", f"{training.name}_1_2"]
    (named,) = findings.warnings
    assert f"is called {training.name}_1_2 in SiteD, where MoNuSAC Testing Data" in named


def test_images_that_cannot_be_used(monuseg, monkeypatch):
    path = next(monuseg.rglob("*A9J9*.tif"))
    title = "MoNuSegTestData/TCGA-2Z-A9J9-01A-01-TS1.tif"
    good = path.read_bytes()
    path.write_bytes(b"PNG, say")
    assert problems(monuseg) == [f"{title}: not a readable image (cannot identify image file file), expected a PNG, JPEG, TIFF or BMP"]
    Image.fromarray(np.zeros((10, 12), np.uint16)).save(path)
    cases, _ = listed(monuseg)
    with pytest.raises(SourceError, match=f"{title}: 16 bits a channel, largest value 0, and neither .* --max-value"):
        cases[-1].read()
    path.write_bytes(good[:-40])  # the pixels come first in these files, the directory last
    with pytest.raises(SourceError, match=f"{title}: (not a readable image|cannot be decoded)"):
        cases[-1].read()
    path.write_bytes(good)
    monkeypatch.setattr(images, "PIXEL_LIMIT", 100)
    assert f"{title}: 12x10 pixels, the limit is 100 pixels" in problems(monuseg)


def test_a_file_that_vanishes_after_listing(monuseg, tnbc):
    cases, _ = listed(monuseg.parent)
    for case in cases:
        case.files[1].unlink()
        with pytest.raises(SourceError, match=r"cannot be read \(No such file or directory\)") as caught:
            case.read()
        assert str(caught.value).startswith(str(case.files[1].relative_to(monuseg.parent)))


def test_masks_of_tnbc(tnbc):
    mask = tnbc / "GT_11" / "11_1.png"
    Image.fromarray(np.resize(np.array((0, 1, 1), np.uint8), SIZE[::-1])).save(mask)
    case = listed(tnbc)[0][-1]
    assert case.patient == "11" and case.read()[0].mask.sum() == 80
    Image.fromarray(np.resize(np.array((0, 7, 255), np.uint8), SIZE[::-1])).save(mask)
    with pytest.raises(SourceError, match=r"GT_11/11_1.png: mask is not binary, found values 0, 7, 255"):
        case.read()
    Image.fromarray(np.zeros((10, 13), np.uint8)).save(mask)
    with pytest.raises(SourceError, match=r"GT_11/11_1.png: mask is 13x10, expected 12x10 as its image Slide_11/11_1.png"):
        case.read()
    (tnbc / "Slide_11" / "11_1.png").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"Slide_11/11_1.png: not a readable image"):
        case.read()


def test_links_out_of_the_source_are_refused(monuseg, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    path = next(monuseg.rglob("*A9J9*.tif"))
    shutil.move(path, outside / path.name)
    path.symlink_to(outside / path.name)
    (monuseg / "more").symlink_to(outside, target_is_directory=True)
    (monuseg / "MoNuSegTestData" / "loop").symlink_to(monuseg, target_is_directory=True)  # inside: neither a problem nor endless
    found = problems(monuseg)
    assert f"MoNuSegTestData/{path.name}: links out of the data folder to {outside / path.name}, expected a file inside it" in found
    assert f"more: links out of the data folder to {outside}, expected a file inside it" in found
    assert len(found) == 3 and found[-1].startswith(f"MoNuSegTestData/{path.stem}.xml: annotations without image")


def test_unusual_names_and_a_read_only_source(monuseg, tmp_path):
    root = tmp_path / "Grüße 細胞 (1)"
    shutil.copytree(monuseg, root)
    for suffix in (".tif", ".xml"):
        file = next(root.rglob(f"*A9J9*{suffix}"))
        file.rename(file.with_name(f"TCGA-2Z-A9J9 Kopie ü{suffix.upper()}"))
    for folder, _, files in os.walk(root):
        for file in files:
            (Path(folder) / file).chmod(0o444)
        Path(folder).chmod(0o555)
    try:
        cases, findings = listed(root)
        assert findings == Findings()
        (case,) = [case for case in cases if case.patient == "TCGA-2Z-A9J9"]
        assert case.name == "TCGA-2Z-A9J9 Kopie ü" and case.read()[0].mask.any()
    finally:
        for folder, _, _ in os.walk(root):
            Path(folder).chmod(0o755)


def test_what_lies_beside_the_downloads(monuseg, tnbc):
    for name in (".DS_Store", "__MACOSX", "MoNuSegTestData/Thumbs.db", "MoNuSegTestData/._TCGA-2Z-A9J9-01A-01-TS1.xml"):
        (monuseg / name).write_bytes(b"x")
    system = "4 file(s) and folder(s) of file servers and systems are not read: 1 .DS_Store, 1 ._*, 1 Thumbs.db, 1 __MACOSX"
    assert listed(monuseg)[1] == Findings(warnings=[system])
    (monuseg / "MoNuSegTestData.zip").write_bytes(b"x")
    (monuseg / "readme.txt").write_bytes(b"x")
    save(monuseg / "MoNuSegTestData" / "TCGA-2Z-A9J9-01A-01-TS1.tiff", 9).rename(
        monuseg / "MoNuSegTestData" / "TCGA-2Z-A9J9-01A-01-TS1.TIF"
    )
    cases, findings = listed(monuseg)
    assert len(cases) == 3 and findings.problems == []
    assert findings.warnings == [system, "3 file(s) belong to none of the downloads and are not read, e.g. MoNuSegTestData.zip"]


def test_an_empty_or_missing_source(tmp_path):
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{tmp_path}: holds no tile, expected MoNuSeg ('Tissue Images' with 'Annotations'")
    (problem,) = problems(tmp_path / "missing")
    assert "cannot be listed" in problem


def datasheet():
    return yaml.safe_load((Path(__file__).parents[2] / "data_manifests" / "nuclei.yaml").read_text(encoding="utf-8"))


def test_the_datasheet_says_what_the_reader_does():
    sheet = datasheet()
    assert sheet["centers"] == {
        **{center: f"MoNuSAC2020, {name}" for name, center in nuclei.ORGAN_CENTERS.items()},
        nuclei.MONUSEG_CENTER: "MoNuSeg2018",
        nuclei.TNBC_CENTER: "TNBC",
    }
    assert tuple(sheet["shared_patients"]) == nuclei.IN_BOTH_SETS
    codes = {center: group for center, group in sheet["hospitals"].items() if center != nuclei.TNBC_CENTER}
    assert {code for group in codes.values() for code in group} == set(TISSUE_SOURCE_SITES)
    # MoNuSAC's abstract counts 37 hospitals: its tissue source sites, none of them in two organs.
    assert sum(len(codes[center]) for center in nuclei.ORGAN_CENTERS.values()) == 37
    for name, center in nuclei.ORGAN_CENTERS.items():
        assert {organ(f"TCGA-{code}-0000") for code in codes[center]} == {name}
    by_name = {center: {hospital(f"TCGA-{code}-0000") for code in codes[center]} for center in nuclei.ORGAN_CENTERS.values()}
    assert set.intersection(*by_name.values()) == {"Roswell Park"}  # as the notes say


@pytest.mark.real_data
def test_stand_in_counts_are_those_of_the_datasheet(real_data_root):
    stand_in = datasheet()["stand_in"]
    table = read_folders(real_data_root / "nuclei", "nuclei", verify=False, progress=False).table
    groups = table.groupby(["center", "split"])
    assert table["center"].value_counts().to_dict() == stand_in["images"]
    for measured, key in ((groups.size(), "images_by_split"), (groups["patient"].nunique(), "patients_by_split")):
        assert {center: {split: int(measured[center, split]) for split in given} for center, given in stand_in[key].items()} == stand_in[
            key
        ]
    # Its centres are groups of hospitals, which the site codes must confirm.
    barcodes = table[table["patient"].str.startswith("TCGA")].groupby("center")["patient"].unique()
    hospitals = {center: {hospital(barcode) for barcode in group} for center, group in barcodes.items()}
    assert hospitals["SiteB"] == {"Roswell Park"}
    assert hospitals["SiteC"] == {"University of Pittsburgh", "Ontario Institute for Cancer Research (OICR)"}
    assert not hospitals["SiteD"] & (hospitals["SiteB"] | hospitals["SiteC"])
