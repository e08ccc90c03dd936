"""Official downloads of MoNuSeg 2018, MoNuSAC 2020 and TNBC, one or all of them anywhere below a folder.

They are told apart by their structure, whatever the folders above are called:

    MoNuSeg   Tissue Images/<barcode>.tif with Annotations/<barcode>.xml (training), or both in one folder (test)
    MoNuSAC   <barcode>/<barcode>_<number>.svs, .tif and .xml: a folder per slide, several tiles in it
    TNBC      Slide_<NN>/<NN>_<number>.png with GT_<NN>/<NN>_<number>.png, NN being the patient

The six centres of the paper's use case 4: MoNuSAC's four organ groups are SiteA to SiteD, MoNuSeg is SiteE, TNBC SiteF.
The paper does not print which organ has which letter; here they have the order of the challenge's page. The organ of a
MoNuSAC tile follows from the tissue source site, the second field of its TCGA barcode.

All of MoNuSAC's four cell classes become nuclei. Its "Ambiguous" regions are not annotated nuclei (faint, or of a kind
that was left out of the challenge) and stay background. The challenges' own training and test sets are not used.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vfmgl_lib.data.images import ImageError, Reading, decode_mask, image_size, read_image
from vfmgl_lib.data.inspection import size_problem
from vfmgl_lib.data.scan import Scan, skipped, system_kind
from vfmgl_lib.tasks.cases import Case, Findings, Format, Picture, SourceError
from vfmgl_lib.tasks.folders import LAYOUTS
from vfmgl_lib.tasks.nuclei.polygons import Layer, PolygonError, inspect_regions, rasterise, read_layers

ORGAN_CENTERS = {"lung": "SiteA", "prostate": "SiteB", "kidney": "SiteC", "breast": "SiteD"}
MONUSEG_CENTER, TNBC_CENTER = "SiteE", "SiteF"
NUCLEUS_CLASSES = ("Epithelial", "Lymphocyte", "Macrophage", "Neutrophil")
AMBIGUOUS = "Ambiguous"
# In both of the official sets, so in two centres: their MoNuSeg tile, one each, is left out if MoNuSAC is there too.
IN_BOTH_SETS = ("TCGA-F9-A8NY", "TCGA-G9-6356")

ORGANS = {"LUAD": "lung", "LUSC": "lung", "PRAD": "prostate", "KIRC": "kidney", "KIRP": "kidney", "BRCA": "breast"}
SITE_TABLE = "gdc.cancer.gov/resources-tcga-users/tcga-code-tables/tissue-source-site-codes"
# Code -> (study, hospital), as in that table, for all codes of MoNuSAC and MoNuSeg. A code is a hospital in one study.
TISSUE_SOURCE_SITES = {
    "18": ("LUSC", "Princess Margaret Hospital (Canada)"),
    "21": ("LUSC", "Fox Chase Cancer Center"),
    "2Z": ("KIRP", "Moffitt Cancer Center"),
    "38": ("LUAD", "UNC"),
    "44": ("LUAD", "Christiana Healthcare"),
    "49": ("LUAD", "Johns Hopkins"),
    "50": ("LUAD", "University of Pittsburgh"),
    "55": ("LUAD", "International Genomics Consortium"),
    "5P": ("KIRP", "University Hospital Erlangen"),
    "69": ("LUAD", "Washington University - Cleveland Clinic"),
    "73": ("LUAD", "Roswell Park"),
    "78": ("LUAD", "Prince Charles Hospital"),
    "86": ("LUAD", "Asterand"),
    "A2": ("BRCA", "Walter Reed"),
    "A6": ("COAD", "Christiana Healthcare"),
    "A7": ("BRCA", "Christiana Healthcare"),
    "AC": ("BRCA", "International Genomics Consortium"),
    "AO": ("BRCA", "MSKCC"),
    "AR": ("BRCA", "Mayo"),
    "AY": ("COAD", "UNC"),
    "B0": ("KIRC", "University of Pittsburgh"),
    "B6": ("BRCA", "Duke"),
    "B9": ("KIRP", "UNC"),
    "BC": ("LIHC", "UNC"),
    "BH": ("BRCA", "University of Pittsburgh"),
    "CH": ("PRAD", "Indivumed"),
    "CU": ("BLCA", "UNC"),
    "D8": ("BRCA", "Greater Poland Cancer Center"),
    "DK": ("BLCA", "Memorial Sloan Kettering"),
    "DW": ("KIRP", "NCI Urologic Oncology Branch"),
    "E2": ("BRCA", "Roswell Park"),
    "E9": ("BRCA", "Asterand"),
    "EJ": ("PRAD", "University of Pittsburgh"),
    "EV": ("KIRP", "CHI-Penrose Colorado"),
    "EW": ("BRCA", "University of Miami"),
    "F9": ("KIRP", "Asterand"),
    "FG": ("LGG", "Case Western"),
    "G2": ("BLCA", "MD Anderson"),
    "G7": ("KIRP", "Roswell Park"),
    "G9": ("PRAD", "Roswell Park"),
    "GL": ("KIRP", "ABS - IUPUI"),
    "HC": ("PRAD", "International Genomics Consortium"),
    "HE": ("KIRP", "Ontario Institute for Cancer Research (OICR)"),
    "HT": ("LGG", "Case Western - St Joes"),
    "IZ": ("KIRP", "ABS - Lahey Clinic"),
    "J4": ("PRAD", "ABS - Lahey Clinic"),
    "KB": ("STAD", "University Health Network, Toronto"),
    "KK": ("PRAD", "MD Anderson Cancer Center"),
    "L4": ("LUAD", "Gundersen Lutheran Health System"),
    "MH": ("KIRP", "BLN - Baylor"),
    "MP": ("LUAD", "Washington University - Mayo Clinic"),
    "NH": ("COAD", "Candler"),
    "P4": ("KIRP", "MD Anderson Cancer Center"),
    "RD": ("STAD", "Peter MacCallum Cancer Center"),
    "S3": ("BRCA", "Albert Einstein Medical Center"),
    "SX": ("KIRP", "Mayo Clinic Arizona"),
    "UZ": ("KIRP", "University of California San Francisco"),
    "V1": ("PRAD", "University of California San Francisco"),
    "VP": ("PRAD", "Washington University"),
    "X4": ("PRAD", "Institute for Medical Research"),
    "XS": ("CESC", "University of Sao Paulo"),
    "YL": ("PRAD", "PROCURE Biobank"),
    "ZF": ("BLCA", "University of Sheffield"),
}

_BARCODE = re.compile(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}(?![A-Z0-9])")
_SLIDE_FOLDER = re.compile(r"(Slide|GT)_(\d+)")
_TISSUE, _ANNOTATIONS = "Tissue Images", "Annotations"
_TILE_SUFFIXES = (".svs", ".tif", ".tiff")  # in this order: the .tif was made from the .svs
_RECOGNISED_ENTRIES, _RECOGNISED_DEPTH = 20_000, 5  # how far `recognise` looks


def hospital(barcode: str) -> str:
    """The hospital, or the company, that contributed the tissue of a TCGA barcode, as the code table names it.

    Raises: SourceError: no TCGA barcode, or a tissue source site that is not in `TISSUE_SOURCE_SITES`.
    """
    return _source_site(barcode)[1]


def organ(barcode: str) -> str:
    """The organ, one of MoNuSAC's four, of a TCGA barcode.

    Raises: SourceError: as `hospital`, or a site that collected another organ.
    """
    study, _ = _source_site(barcode)
    if study not in ORGANS:
        raise SourceError(f"tissue source site {barcode[5:7]!r} belongs to the study {study}, expected one of {', '.join(ORGANS)}")
    return ORGANS[study]


def _source_site(barcode: str) -> tuple[str, str]:
    found = _BARCODE.match(barcode)
    if not found:
        raise SourceError(f"{barcode!r} is no TCGA barcode, expected TCGA-<site>-<patient>…")
    if found[1] not in TISSUE_SOURCE_SITES:
        raise SourceError(
            f"tissue source site {found[1]!r} is unknown, expected in TISSUE_SOURCE_SITES of {__name__}: add it from {SITE_TABLE}"
        )
    return TISSUE_SOURCE_SITES[found[1]]


def recognise_downloads(source: Path) -> bool:
    """Whether a folder holds one of the three downloads, from names alone and without looking deep or far."""
    waiting, seen = [(Path(source), 0)], 0
    while waiting and seen < _RECOGNISED_ENTRIES:
        folder, depth = waiting.pop(0)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    seen += 1
                    barcode = _BARCODE.match(entry.name)
                    if barcode and entry.name.lower().endswith(".xml"):
                        return True
                    if depth < _RECOGNISED_DEPTH and entry.is_dir() and not system_kind(entry):
                        if barcode or entry.name == _TISSUE or _SLIDE_FOLDER.fullmatch(entry.name):
                            return True
                        waiting.append((folder / entry.name, depth + 1))
        except OSError:
            continue
    return False


@dataclass(frozen=True)
class _Tile:
    """An image and what says where its nuclei are: a file of outlines or, for TNBC, a mask."""

    name: str
    center: str
    patient: str
    image: Path
    annotation: Path
    titles: tuple[str, str]  # how messages call the two: their paths below the source

    @property
    def has_classes(self) -> bool:
        return self.center in ORGAN_CENTERS.values()

    def case(self, reading: Reading) -> Case:
        read = _read_masked if self.center == TNBC_CENTER else _read_outlined
        return Case(self.name, self.center, self.patient, (self.image, self.annotation), partial(read, self, reading))


def cases_downloads(source: Path, findings: Findings) -> list[Case]:
    """All tiles below a folder. Annotations are read and the headers of images, pixels are not.

    Patients are the first three fields of a TCGA barcode, or the NN of TNBC's folder. A tile is named as its file; where
    a centre has the name twice (MoNuSAC's two sets share two patients) the later one gets a number behind it.
    """
    scan = _Downloads(Path(source).resolve())
    outlined, masked, unread = _pair(scan.files())
    tiles = _outlined_tiles(scan, outlined, findings) + _masked_tiles(scan, masked)
    if not tiles and not scan.problems:
        scan.problems.append(f"{source}: holds no tile, expected {FORMATS[-1].description}")
    findings.problems += scan.problems
    findings.warnings += skipped(scan.skipped)
    if unread:
        findings.warnings.append(f"{len(unread)} file(s) belong to none of the downloads and are not read, e.g. {scan.name(unread[0])}")
    tiles = _named_once(_without_shared_patients(tiles, findings), findings)
    _report_outlines([tile for tile in tiles if tile.center != TNBC_CENTER], findings)
    return [tile.case(findings.reading) for tile in tiles]


class _Downloads(Scan):
    """Lists all files below a folder, as safely as `Scan` lists one folder."""

    def files(self) -> list[Path]:
        found, waiting, seen = [], [self.root], set()
        while waiting:
            folder = waiting.pop()
            if folder.resolve() not in seen:  # it is there already if a link leads to a folder above
                seen.add(folder.resolve())
                entries = self._entries(folder)
                found += [entry for entry in entries if entry.is_file()]
                waiting += [entry for entry in reversed(entries) if entry.is_dir()]
        return found


def _pair(files: list[Path]) -> tuple[dict, dict, list[Path]]:
    """Sort files to their tiles.

    Returns: (folder, stem) -> suffix -> file, with outlines; (folder, NN, stem) -> "Slide" or "GT" -> file, with masks;
        the files that belong to no tile.
    """
    outlined: dict[tuple[Path, str], dict[str, Path]] = {}
    masked: dict[tuple[Path, str, str], dict[str, Path]] = {}
    rest = []
    for file in files:
        suffix, folder = file.suffix.lower(), file.parent
        slide = _SLIDE_FOLDER.fullmatch(folder.name)
        if slide and suffix == ".png":
            part, pair = slide[1], masked.setdefault((folder.parent, slide[2], file.stem), {})
        elif suffix == ".xml" or suffix in _TILE_SUFFIXES:
            home = folder.parent if folder.name in (_TISSUE, _ANNOTATIONS) else folder
            part, pair = suffix, outlined.setdefault((home, file.stem), {})
        else:
            part, pair = "", {"": file}
        if part in pair:  # there already, as .TIF beside .tif for instance
            rest.append(file)
        else:
            pair[part] = file
    return outlined, masked, rest


def _outlined_tiles(scan: Scan, pairs: dict, findings: Findings) -> list[_Tile]:
    tiles, replaced = [], []
    for (home, stem), files in pairs.items():
        images = [files[suffix] for suffix in _TILE_SUFFIXES if suffix in files]
        barcode, folder = _BARCODE.match(stem), _BARCODE.match(home.name)
        title = scan.name(images[0] if images else files[".xml"])
        if ".xml" not in files:
            expected = home / _ANNOTATIONS if images[0].parent.name == _TISSUE else home
            scan.problems.append(f"{title}: annotations are missing, expected {scan.name(expected / stem)}.xml")
        elif not images:
            expected = home / _TISSUE if files[".xml"].parent.name == _ANNOTATIONS else home
            scan.problems.append(f"{title}: annotations without image, expected {scan.name(expected / stem)}.tif")
        elif not barcode:
            scan.problems.append(f"{title}: name is no TCGA barcode, expected TCGA-<site>-<patient>…")
        elif folder and folder.group() != barcode.group():
            scan.problems.append(f"{title}: is in the folder of {folder.group()}, expected a tile of that patient")
        else:
            try:
                center = ORGAN_CENTERS[organ(stem)] if folder else MONUSEG_CENTER
            except SourceError as error:
                scan.problems.append(f"{title}: {error}")
                continue
            image = next((image for image in images if _is_readable(image)), images[0])
            replaced += [image] if image != images[0] else []
            titles = (scan.name(image), scan.name(files[".xml"]))
            tiles.append(_Tile(stem, center, barcode.group(), image, files[".xml"], titles))
    if replaced:
        findings.warnings.append(f"{len(replaced)} tile(s) are read from .tif, as their .svs cannot be, e.g. {scan.name(replaced[0])}")
    return tiles


def _masked_tiles(scan: Scan, pairs: dict) -> list[_Tile]:
    tiles = []
    for (home, number, stem), files in pairs.items():
        if len(files) == 2:
            image, mask = files["Slide"], files["GT"]
            tiles.append(_Tile(stem, TNBC_CENTER, number, image, mask, (scan.name(image), scan.name(mask))))
            continue
        ((kind, file),) = files.items()
        what, other = ("mask is missing", "GT") if kind == "Slide" else ("mask without image", "Slide")
        scan.problems.append(f"{scan.name(file)}: {what}, expected {scan.name(home / f'{other}_{number}' / file.name)}")
    return tiles


def _without_shared_patients(tiles: list[_Tile], findings: Findings) -> list[_Tile]:
    shared = {tile.patient for tile in tiles if tile.has_classes} & set(IN_BOTH_SETS)
    out = [tile for tile in tiles if tile.center == MONUSEG_CENTER and tile.patient in shared]
    for tile in out:
        findings.warnings.append(f"{tile.titles[0]}: left out, {tile.patient} has tiles in MoNuSAC too and can be in one centre only")
    return [tile for tile in tiles if tile not in out]


def _named_once(tiles: list[_Tile], findings: Findings) -> list[_Tile]:
    """The tiles with names that are unique in their centre, and without copies of a tile."""
    named: dict[tuple[str, str], _Tile] = {}
    for tile in tiles:
        twins = [other for other in named.values() if other.center == tile.center and other.image.stem == tile.name]
        copied = [twin for twin in twins if _same(twin.image, tile.image) and _same(twin.annotation, tile.annotation)]
        if copied:
            findings.warnings.append(f"{tile.titles[0]}: left out, a copy of {copied[0].titles[0]}")
            continue
        name, number = tile.name, 1
        while (tile.center, name) in named:
            number += 1
            name = f"{tile.name}_{number}"
        if number > 1:
            other = named[tile.center, tile.name].titles[0]
            findings.warnings.append(f"{tile.titles[0]}: is called {name} in {tile.center}, where {other} has its name")
        named[tile.center, name] = replace(tile, name=name)
    return list(named.values())


def _same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False  # reading the tile will say what is wrong with it


def _report_outlines(tiles: list[_Tile], findings: Findings) -> None:
    """Problems of every annotation, and what is left out of masks in one line a kind."""
    clipped, clicks, ambiguous, empty = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for tile in tiles:
        title = tile.titles[1]
        try:
            layers = _layers(tile)
            problems, clicked, leaving = _check(tile, layers, *_tile_size(tile))
        except (OSError, ImageError, PolygonError) as error:
            findings.problems.append(_message(tile, error))
            continue
        findings.problems += problems
        clipped[title], clicks[title] = leaving, len(clicked)
        ambiguous[title] = sum(layer.count for layer in layers if tile.has_classes and layer.name == AMBIGUOUS)
        empty[title] = int(not any(layer.regions for layer in layers))
    said = (
        (clipped, "annotation(s) leave their tile and are cut off at its edge"),
        (clicks, "region(s) of fewer than 3 points and no area, clicks that drew nothing, are left out"),
        (ambiguous, f"region(s) {AMBIGUOUS!r} stay background"),
        (empty, "tile(s) have no annotated nucleus"),
    )
    for counts, what in said:
        counts = +counts  # without the zeros
        if counts:
            first, most = counts.most_common(1)[0]
            findings.warnings.append(f"{counts.total()} {what}, in {len(counts)} file(s), e.g. {most} in {first}")


def _check(tile: _Tile, layers: list[Layer], width: int, height: int) -> tuple[list[str], list[str], int]:
    """`inspect_regions`, and classes that are none of MoNuSAC's."""
    problems, clicks, clipped = inspect_regions(layers, width, height, tile.titles[1])
    known = (*NUCLEUS_CLASSES, AMBIGUOUS)
    for layer in layers:
        if tile.has_classes and layer.count and layer.name not in known:
            problems.append(f"{tile.titles[1]}: class {layer.name!r} of {layer.count} region(s), expected one of {', '.join(known)}")
    return problems, clicks, clipped


def _layers(tile: _Tile) -> list[Layer]:
    return read_layers(tile.annotation, tile.titles[1], skip=(AMBIGUOUS,) if tile.has_classes else ())


def _read_outlined(tile: _Tile, reading: Reading) -> list[Picture]:
    try:
        (image, remarks), layers = _decode_tile(tile, reading), _layers(tile)
    except (OSError, ImageError, PolygonError) as error:
        raise SourceError(_message(tile, error)) from error
    width, height = image.size
    problems, _, _ = _check(tile, layers, width, height)
    if problems:
        raise SourceError("; ".join(problems))
    return [Picture("", np.asarray(image), rasterise(layers, width, height), remarks=remarks)]


def _read_masked(tile: _Tile, reading: Reading) -> list[Picture]:
    try:
        image, remarks = read_image(tile.image, tile.titles[0], reading)
        mask = decode_mask(tile.annotation, tile.titles[1])
    except (OSError, ImageError) as error:
        raise SourceError(_message(tile, error)) from error
    if problem := size_problem(tile.titles[0], image.size, tile.titles[1], mask):
        raise SourceError(problem)
    return [Picture("", np.asarray(image), mask, remarks=remarks)]


def _message(tile: _Tile, error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    title = tile.titles[1 if error.filename == str(tile.annotation) else 0]
    return f"{title}: cannot be read ({error.strerror or error})"


def _tile_size(tile: _Tile) -> tuple[int, int]:
    return image_size(tile.image, tile.titles[0], first_frame=True)


def _decode_tile(tile: _Tile, reading: Reading) -> tuple[Image.Image, tuple[str, ...]]:
    """The first frame, which is the one at full resolution, as `read_image` gives it."""
    try:
        return read_image(tile.image, tile.titles[0], reading, first_frame=True)
    except ImageError as error:
        instead = "; as .tif of the same name, without the .svs, it may be" if tile.image.suffix.lower() == ".svs" else ""
        raise ImageError(f"{error}{instead}") from error


def _is_readable(image: Path) -> bool:
    try:
        image_size(image, first_frame=True)
    except (OSError, ImageError):
        return False
    return True


FORMATS = (
    LAYOUTS["mask_folders"].format,
    Format(
        "downloads",
        f"MoNuSeg ({_TISSUE!r} with {_ANNOTATIONS!r}, or .tif with .xml), MoNuSAC (a folder per TCGA barcode) or TNBC"
        " (Slide_NN with GT_NN), or several of them",
        recognise_downloads,
        cases=cases_downloads,
    ),
)
