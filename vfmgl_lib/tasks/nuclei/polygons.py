"""Nuclei outlined by hand: annotations of Aperio ImageScope (XML), read safely and painted into a binary mask.

A file holds layers (Annotation), a layer regions (Region), and a region one closed line of vertices (Vertex X, Y) in
pixels. The origin is the outer corner of the top left pixel: pixel (row, column) has its centre at (column + 0.5,
row + 0.5), and it is painted if its centre lies inside the line. A centre that lies on the line belongs to the region
right of it or below it, so regions with a common edge cover each of its pixels once and leave no gap.

Inside means enclosed in either direction (non-zero winding): where a line drawn by hand overlaps itself, on closing for
instance, the part it encloses twice is still nucleus. Holes are regions of their own, marked NegativeROA="1"; they are
cut out of the other regions of their layer. In the mask of a tile nuclei that touch or overlap merge.

Why not a library: of triangulations of 40 x 40 pixels with vertices on pixel centres, `skimage.draw.polygon` paints 5 %
of the pixels more than once, `matplotlib.path.Path` leaves 1 % out, and `PIL.ImageDraw` paints 37 % more than once.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml.ElementTree import ParseError, parse

XML_LIMIT = 64 * 1024 * 1024  # bytes; the annotations of a tile have one or two million
COORDINATE_LIMIT = 1_000_000.0  # pixels; beyond it is no image, only arithmetic that overflows


class PolygonError(ValueError):
    """A file of annotations cannot be read; the message names the file."""


@dataclass(frozen=True)
class Region:
    """One outline.

    Attributes:
        id: as in the file.
        vertices: (N, 2) float64, x and y in pixels; empty if `problem` says why they cannot be read.
        negative: a hole in the other regions of its layer.
        area: in square pixels as ImageScope wrote it beside the vertices, None where it did not.
        problem: "" or what is wrong with a vertex.
    """

    id: str
    vertices: np.ndarray
    negative: bool = False
    area: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Layer:
    """Regions under a common name: the Name of the layer's first Attribute, which MoNuSAC uses for the class.

    Attributes:
        count: number of regions in the file; a layer that was skipped has a count, but no regions.
    """

    name: str
    regions: tuple[Region, ...]
    count: int


def read_layers(path: Path, name: str | None = None, skip: Collection[str] = ()) -> list[Layer]:
    """The layers of an ImageScope file, in its order. Entities and references to other files are refused.

    Args:
        name: how errors call the file; its path if left out.
        skip: names of layers of which only the regions are counted.
    Raises: PolygonError: not XML, not ImageScope's, forbidden content, above `XML_LIMIT`. OSError: cannot be opened.
    """
    name = name or str(path)
    with open(path, "rb") as file:
        if (size := path.stat().st_size) > XML_LIMIT:
            raise PolygonError(f"{name}: {size} bytes of annotations, the limit is {XML_LIMIT} bytes")
        try:
            root = parse(file).getroot()
        except (ParseError, ValueError, LookupError) as error:  # broken, forbidden (defusedxml), unknown encoding
            raise PolygonError(f"{name}: not readable XML ({error}), expected annotations of Aperio ImageScope") from error
    if root.tag != "Annotations":
        raise PolygonError(f"{name}: begins with <{root.tag}>, expected <Annotations> as Aperio ImageScope writes it")
    layers = []
    for annotation in root.iterfind("Annotation"):
        attribute = annotation.find("Attributes/Attribute")
        label = "" if attribute is None else attribute.get("Name", "").strip()
        elements = annotation.findall("Regions/Region")
        regions = () if label in skip else tuple(_region(element) for element in elements)
        layers.append(Layer(label, regions, len(elements)))
    return layers


def _region(element: Element) -> Region:
    texts = [(vertex.get("X", ""), vertex.get("Y", "")) for vertex in element.iterfind("Vertices/Vertex")]
    vertices, problem = _numbers(texts), ""
    if vertices is None:
        position, (x, y) = next((position, pair) for position, pair in enumerate(texts, 1) if _numbers([pair]) is None)
        problem = f"vertex {position} is at X={x!r}, Y={y!r}, expected two numbers up to {COORDINATE_LIMIT:.0f}"
        vertices = np.empty((0, 2))
    area = _numbers([(element.get("Area", ""), "0")])
    negative = element.get("NegativeROA") == "1"
    return Region(element.get("Id", ""), vertices, negative, None if area is None else float(area[0, 0]), problem)


def _numbers(pairs: list[tuple[str, str]]) -> np.ndarray | None:
    """(N, 2) float64, or None if one of them is no number that a coordinate can be."""
    try:
        values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    except ValueError:
        return None
    return values if (np.abs(values) <= COORDINATE_LIMIT).all() else None  # false for NaN as well


def inspect_regions(layers: Sequence[Layer], width: int, height: int, name: str) -> tuple[list[str], list[str], int]:
    """What is wrong with outlines for a tile of width x height pixels, without painting them.

    Fewer than three distinct points enclose nothing. ImageScope leaves such a region, with an Area of 0, where somebody
    clicked and drew no line; with another Area, or none, points have been lost.

    Args:
        name: how the findings call the file.
    Returns: (problems; clicks, the ids of regions that are such a click; number of regions that leave the tile in part).
    """
    problems, clicks, clipped = [], [], 0
    for region in (region for layer in layers for region in layer.regions):
        where = f"{name}: region {region.id!r}"
        if region.problem:
            problems.append(f"{where}: {region.problem}")
            continue
        points = len(set(map(tuple, region.vertices.tolist())))
        if points < 3 and region.area == 0:
            clicks.append(region.id)
        elif points < 3:
            area = "" if region.area is None else f" and an area of {region.area:g}"
            problems.append(f"{where} has {points} distinct point(s){area}, expected at least 3")
        else:
            (left, top), (right, bottom) = region.vertices.min(axis=0), region.vertices.max(axis=0)
            if right <= 0 or bottom <= 0 or left >= width or top >= height:
                spans = f"x {left:g} to {right:g}, y {top:g} to {bottom:g}"
                problems.append(f"{where} lies outside of its tile ({spans}), expected within {width} x {height}")
            elif left < 0 or top < 0 or right > width or bottom > height:
                clipped += 1
    return problems, clicks, clipped


def rasterise(layers: Sequence[Layer], width: int, height: int) -> np.ndarray:
    """Paint all layers into one mask; what lies outside of the tile is cut off.

    Returns: (height, width) uint8, 1 where at least one layer covers the centre of the pixel, 0 elsewhere.
    """
    mask = np.zeros((height, width), np.uint8)
    for layer in layers:
        painted = np.zeros_like(mask)
        for region in sorted(layer.regions, key=lambda region: region.negative):  # holes are cut last
            _fill(painted, region.vertices, 0 if region.negative else 1)
        mask |= painted
    return mask


def _fill(mask: np.ndarray, vertices: np.ndarray, value: int) -> None:
    """Set the pixels of mask (H, W) to value whose centres lie inside the closed line of vertices (N, 2)."""
    height, width = mask.shape
    if len(vertices) < 3:
        return
    # Numbers of the first pixel whose centre is not left of (above) a coordinate: its ceiling after taking off half.
    left, top = np.clip(np.ceil(vertices.min(axis=0) - 0.5), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(vertices.max(axis=0) - 0.5), 0, (width, height)).astype(int)
    if left >= right or top >= bottom:
        return
    start, end = vertices, np.roll(vertices, -1, axis=0)
    down = end[:, 1] > start[:, 1]
    # From top to bottom, whichever way the line runs: neighbours then compute the same crossing of a common edge.
    upper, lower = np.where(down[:, None], start, end), np.where(down[:, None], end, start)
    centers = np.arange(top, bottom) + 0.5
    edges, rows = np.nonzero((upper[:, 1, None] <= centers) & (centers < lower[:, 1, None]))
    slope = (lower[edges, 0] - upper[edges, 0]) / (lower[edges, 1] - upper[edges, 1])
    crossings = upper[edges, 0] + (centers[rows] - upper[edges, 1]) * slope
    columns = np.clip(np.ceil(crossings - 0.5), left, right).astype(int) - left
    turns = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(turns, (rows, columns), np.where(down[edges], 1, -1))
    inside = np.cumsum(turns, axis=1)[:, :-1] != 0
    mask[top:bottom, left:right][inside] = value
