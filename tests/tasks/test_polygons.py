"""Outlines of ImageScope: masks worked out by hand, common edges, holes, and each kind of bad file."""

import numpy as np
import pytest
from scipy.spatial import Delaunay

from vfmgl_lib.tasks.nuclei import polygons
from vfmgl_lib.tasks.nuclei.polygons import Layer, PolygonError, Region, inspect_regions, rasterise, read_layers


def layer(*outlines, negative=()):
    regions = [Region(str(number), np.array(points, float)) for number, points in enumerate(outlines, 1)]
    regions += [Region("hole", np.array(points, float), negative=True) for points in negative]
    return Layer("", tuple(regions), len(regions))


def painted(*layers, width=8, height=6):
    return ["".join(".#"[value] for value in row) for row in rasterise(layers, width, height)]


def region_xml(points, id="1", **attributes):
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
    given = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f'<Region Id="{id}"{given}><Attributes/><Vertices>{vertices}</Vertices></Region>'


def file_xml(*regions, name="Description"):
    inner = f"<Regions><RegionAttributeHeaders/>{''.join(regions)}</Regions><Plots/>"
    attributes = f'<Attributes><Attribute Name="{name}" Id="0" Value=""/></Attributes>'
    return f'<Annotations MicronsPerPixel="0.25"><Annotation Id="1">{attributes}{inner}</Annotation></Annotations>'


SQUARE = [(1, 1), (4, 1), (4, 4), (1, 4)]


def test_whole_coordinates_cover_their_area():
    assert painted(layer([(1, 2), (5, 2), (5, 4), (1, 4)])) == ["........", "........", ".####...", ".####...", "........", "........"]


def test_triangle_by_hand():
    # The hypotenuse is x + y = 5: of row r the centres with column + 0.5 < 5 - (r + 0.5) are inside, those on it are not.
    outline = [(0, 0), (5, 0), (0, 5)]
    expected = ["####....", "###.....", "##......", "#.......", "........", "........"]
    assert painted(layer(outline)) == expected
    assert painted(layer(outline[::-1])) == expected


def test_fractional_vertices_by_hand():
    # x from 1.4 to 3.6 holds the centres 1.5, 2.5 and 3.5; y from 0.6 to 2.5 holds 1.5 alone, 2.5 being on the lower edge.
    assert painted(layer([(1.4, 0.6), (3.6, 0.6), (3.6, 2.5), (1.4, 2.5)])) == ["........", ".###....", *["........"] * 4]


def test_two_regions_share_an_edge_through_centres():
    left, right = [(0.5, 0.5), (3.5, 0.5), (1.5, 4.5), (0.5, 4.5)], [(3.5, 0.5), (6.5, 0.5), (6.5, 4.5), (1.5, 4.5)]
    one, other = (rasterise([layer(outline)], 8, 6) for outline in (left, right[::-1]))
    both = rasterise([layer(left, right[::-1])], 8, 6)
    assert (one & other).sum() == 0 and (one | other == both).all()
    assert (both == rasterise([layer([(0.5, 0.5), (6.5, 0.5), (6.5, 4.5), (0.5, 4.5)])], 8, 6)).all() and both.sum() == 24


@pytest.mark.parametrize("step", [1.0, 0.5, 0.0])  # vertices on corners, on corners and centres, anywhere
def test_triangulation_covers_every_pixel_once(step):
    generator = np.random.default_rng(5)
    counts = np.zeros((40, 40), int)
    corners = [(0, 0), (40, 0), (0, 40), (40, 40)]
    for _ in range(10):
        inner = generator.uniform(0, 40, (60, 2)) if not step else generator.integers(0, int(40 / step) + 1, (60, 2)) * step
        points = np.unique(np.vstack([corners, inner]), axis=0)
        for triangle in Delaunay(points).simplices:
            order = np.roll(triangle[:: generator.choice([1, -1])], generator.integers(3))
            counts += rasterise([layer(points[order])], 40, 40)
    assert (counts == 10).all()


def test_hole_is_cut_out_of_its_layer_whatever_the_order():
    ring = ["........", ".####...", ".#..#...", ".#..#...", ".####...", "........"]
    outer, hole = [(1, 1), (5, 1), (5, 5), (1, 5)], [(2, 2), (4, 2), (4, 4), (2, 4)]
    assert painted(layer(outer, negative=[hole])) == ring
    reversed_order = Layer("", layer(outer, negative=[hole]).regions[::-1], 2)
    assert painted(reversed_order) == ring
    assert painted(layer(outer, negative=[hole]), layer(hole))[2] == ".####..."  # another layer's region fills it again


def test_region_in_a_region_is_not_a_hole():
    assert painted(layer([(1, 1), (5, 1), (5, 5), (1, 5)], [(2, 2), (4, 2), (4, 4), (2, 4)]))[2] == ".####..."


def test_line_that_overlaps_itself_encloses_no_hole():
    twice = [(1, 1), (5, 1), (5, 4), (1, 4)] * 2
    assert painted(layer(twice)) == painted(layer(twice[:4]))


def test_annotation_is_cut_at_the_edge():
    outline = [(-3, -2), (2, -2), (2, 2), (-3, 2)]
    assert painted(layer(outline)) == ["##......", "##......", *["........"] * 4]
    assert painted(layer([(6, 4), (900, 4), (900, 900), (6, 900)])) == [*["........"] * 4, "......##", "......##"]
    assert inspect_regions([layer(outline, SQUARE)], 8, 6, "a.xml") == ([], [], 1)
    assert inspect_regions([layer([(0, 0), (8, 0), (8, 6), (0, 6)])], 8, 6, "a.xml") == ([], [], 0)


def test_tiny_polygon_paints_the_centre_it_holds_or_nothing():
    assert painted(layer([(2.4, 2.4), (2.6, 2.4), (2.6, 2.6), (2.4, 2.6)]))[2] == "..#....."
    assert "#" not in "".join(painted(layer([(2.6, 2.6), (2.9, 2.6), (2.9, 2.9), (2.6, 2.9)])))


def test_too_few_points():
    two, one = [(1, 1), (3, 3), (1, 1), (3, 3)], [(2, 2)]
    found, clicks, _ = inspect_regions([layer(SQUARE, two, one, [])], 8, 6, "a.xml")
    assert found == [
        "a.xml: region '2' has 2 distinct point(s), expected at least 3",
        "a.xml: region '3' has 1 distinct point(s), expected at least 3",
        "a.xml: region '4' has 0 distinct point(s), expected at least 3",
    ]
    assert clicks == [] and "#" not in "".join(painted(layer(two, one, [])))


def test_a_click_without_area_is_told_from_lost_points(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(file_xml(region_xml([(1, 1), (2, 2)], "7", Area="0"), region_xml([(1, 1), (2, 2)], "8", Area="41.5")))
    found, clicks, _ = inspect_regions(read_layers(path), 8, 6, "a.xml")
    assert clicks == ["7"]
    assert found == ["a.xml: region '8' has 2 distinct point(s) and an area of 41.5, expected at least 3"]


@pytest.mark.parametrize("shift", [(-4, 0), (0, -4), (8, 0), (0, 6), (500, 500)])
def test_outside_of_the_tile(shift):
    moved = [(x - 1 + shift[0], y - 1 + shift[1]) for x, y in SQUARE]
    found, _, clipped = inspect_regions([layer(moved)], 8, 6, "a.xml")
    assert len(found) == 1 and found[0].startswith("a.xml: region '1' lies outside of its tile (x ") and clipped == 0
    assert found[0].endswith("expected within 8 x 6")
    assert not rasterise([layer(moved)], 8, 6).any()


def test_file_is_read(tmp_path):
    path = tmp_path / "Kerne ü 1.xml"
    hole = region_xml([(2, 2), (3, 2), (3, 3)], "2", NegativeROA="1")
    path.write_text(file_xml(region_xml(SQUARE, NegativeROA="0", Area="9.0"), hole, name=" Epithelial "), encoding="utf-8")
    (only,) = read_layers(path)
    assert (only.name, only.count) == ("Epithelial", 2)
    assert only.regions[0].vertices.tolist() == [[1, 1], [4, 1], [4, 4], [1, 4]] and only.regions[0].vertices.dtype == np.float64
    assert [(region.id, region.negative, region.area) for region in only.regions] == [("1", False, 9.0), ("2", True, None)]


def test_a_skipped_layer_is_counted_only(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(file_xml(region_xml([("x", 1)]), region_xml(SQUARE), name="Ambiguous"))
    assert read_layers(path, skip=("Ambiguous",)) == [Layer("Ambiguous", (), 2)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "a.xml"
    path.write_text(file_xml(region_xml(SQUARE)), encoding=encoding)
    assert read_layers(path)[0].count == 1


@pytest.mark.parametrize("value", ["", "abc", "nan", "inf", "1e300"])
def test_vertex_that_is_no_number(tmp_path, value):
    path = tmp_path / "a.xml"
    path.write_text(file_xml(region_xml([(1, 1), (value, 2), (3, 3)], "5")))
    layers = read_layers(path)
    (problem,), _, _ = inspect_regions(layers, 8, 6, "a.xml")
    assert problem == f"a.xml: region '5': vertex 2 is at X={value!r}, Y='2', expected two numbers up to 1000000"
    assert not rasterise(layers, 8, 6).any()


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not readable XML (no element found"),
        ("<Annotations><Annotation>", "not readable XML (no element found"),
        (file_xml(region_xml(SQUARE))[:200], "not readable XML"),
        ("not xml", "not readable XML (syntax error"),
        ("<annotation/>", "begins with <annotation>, expected <Annotations>"),
        (BOMB + "<Annotations>&c;</Annotations>", "not readable XML (EntitiesForbidden"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><Annotations>&b;</Annotations>', "not readable XML (EntitiesForbidden"),
        ('<?xml version="1.0" encoding="klingon"?><Annotations/>', "not readable XML"),
    ],
)
def test_broken_or_forbidden_xml(tmp_path, text, why):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(PolygonError) as caught:
        read_layers(path, "sub/a.xml")
    assert str(caught.value).startswith(f"sub/a.xml: {why}")


def test_too_large_a_file_is_not_parsed(tmp_path, monkeypatch):
    path = tmp_path / "a.xml"
    path.write_text(file_xml(region_xml(SQUARE)))
    monkeypatch.setattr(polygons, "XML_LIMIT", 100)
    with pytest.raises(PolygonError, match="the limit is 100 bytes"):
        read_layers(path)
