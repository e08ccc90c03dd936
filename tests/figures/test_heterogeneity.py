"""Figures of the data, and the tables made from images."""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from vfmgl_lib.data.label_masks import class_color
from vfmgl_lib.evaluation import samples
from vfmgl_lib.evaluation.heterogeneity import center_distances, stain_profile
from vfmgl_lib.figures import heterogeneity
from vfmgl_lib.figures.style import DOUBLE, save_figure

TABLE_1 = Path(__file__).parents[2] / "data_manifests" / "table1_endometrial_patients.csv"


def pictures(centers: list[str], images: int = 3, mask: bool = True) -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows = []
    for center in centers:
        for index in range(images):
            outline = np.zeros((8, 8), bool)
            outline[2:5, 2:5] = True
            image = random.random((8, 8, 3)).astype(np.float32)
            rows.append((f"{center}/{index}", center, "train", "" if mask else "MI", image, outline if mask else None))
    return pd.DataFrame(rows, columns=["id", "center", "split", "label", "image", "mask"])


def test_color_profile_is_a_density_and_knows_grey():
    table = pictures(["A", "B"])
    profile = samples.color_profile(table)
    assert list(profile["channel"].unique()) == ["red", "green", "blue"]
    assert np.allclose(profile.groupby(["center", "channel"])["density"].mean(), 1)
    grey = table.assign(image=[np.repeat(image[..., :1], 3, axis=2) for image in table["image"]])
    assert list(samples.color_profile(grey)["channel"].unique()) == ["grey"]


def test_image_statistics():
    table = pictures(["A"], images=1).assign(image=[np.concatenate([np.zeros((4, 8, 3)), np.ones((4, 8, 3))])])
    row = samples.image_statistics(table).iloc[0]
    assert (row.brightness, row.contrast) == (0.5, 0.5)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("mask", [True, False])
def test_image_grid(count: int, mask: bool, tmp_path):
    centers = ["a centre with a very long name indeed", "Łódź $1", *(f"c{i}" for i in range(6))][:count]
    table = pictures(centers, mask=mask)
    figure = heterogeneity.image_grid(table, columns=2)
    assert len(figure.axes) == 2 * count
    for axis in figure.axes:
        assert len(axis.images) == 1
        assert bool(axis.texts) == (not mask)
    assert figure.axes[0].get_ylabel() == "a centre with a\nvery long name\nindeed"
    save_figure(figure, table.drop(columns=["image", "mask"]), tmp_path, "grid")
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_an_image_grid_of_several_classes_has_a_legend(collisions):
    table = pictures(["A", "B"], mask=True)
    several = [mask.astype(np.uint8) * (1 + place % 2) for place, mask in enumerate(table["mask"])]
    figure = heterogeneity.image_grid(table.assign(mask=pd.Series(several, dtype=object)), classes=("background", "disc", "a $bar$"))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["disc", r"a \$bar\$"] and not collisions(figure)
    assert not heterogeneity.image_grid(table, classes=("background", "disc")).legends


def test_the_shares_of_pixels_have_the_colours_of_the_outlines():
    about = {"center": ["A", "A", "B"], "split": ["train", "test", "train"], "images": [3, 1, 2], "patients": [3, 1, 2]}
    table = pd.DataFrame(about | {"share[disc]": [0.1, 0.3, 0.0], "share[bar]": [0.2, 0.2, 0.4]})
    right = heterogeneity.counts(table, "foreground pixels", of_pixels=True).axes[1]
    widths = {to_hex(patch.get_facecolor()): [] for patch in right.patches}
    for patch in right.patches:
        widths[to_hex(patch.get_facecolor())].append(patch.get_width())
    assert widths[class_color(1).lower()] == pytest.approx([15, 0]) and widths[class_color(2).lower()] == pytest.approx([20, 40])


@pytest.mark.parametrize("count", [2, 8])
def test_distributions_and_clouds_have_one_colour_a_centre(count: int):
    table = pictures([f"c{i}" for i in range(count)])
    lines = heterogeneity.color_distributions(samples.color_profile(table)).axes
    assert [axis.get_title(loc="left") for axis in lines] == ["red", "green", "blue"]
    assert all(len(axis.lines) == count and axis.get_xlabel() for axis in lines)
    top = lines[0].get_ylim()[1]
    assert top >= max(line.get_ydata().max() for axis in lines for line in axis.lines)
    cloud = heterogeneity.brightness_contrast(samples.image_statistics(table)).axes[0]
    assert len(cloud.collections) == count
    assert len({line.get_color() for line in lines[0].lines}) == count


def test_counts_draw_every_split_and_centre(tmp_path):
    rows = [(c, s, n, n // 2, 0.25) for c in ("A", "B") for s, n in (("train", 10), ("test", 4))]
    table = pd.DataFrame(rows, columns=["center", "split", "images", "patients", "positive_share"])
    left, right = heterogeneity.counts(table, "images of class MI").axes
    assert sum(bar.get_width() for bar in left.patches) == table["images"].sum()
    assert [text.get_text() for text in left.texts] == ["14 images, 7 patients"] * 2
    assert right.get_xlabel() == "images of class MI (%)"
    assert {x for line in right.lines[:2] for x in line.get_xdata()} == {25.0}


def colliding_texts(figure: Figure) -> list[tuple[str, ...]]:
    """Pairs of texts that overlap, and texts that leave the figure; a pixel of each side is air."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for axis in figure.axes for text in axis.texts]
    texts += [text for axis in figure.axes if axis.axison for text in [*axis.get_xticklabels(), *axis.get_yticklabels()]]
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer()).padded(-1)) for text in texts if text.get_text()]
    width, height = canvas.get_width_height()
    outside = [(name,) for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    return outside + [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]


def confusion(centers: list[str], right: float) -> pd.DataFrame:
    """Of 20 images a centre the share `right` is told, the others are taken for the next centre."""
    rows = []
    for (place, center), (other, predicted) in product(enumerate(centers), enumerate(centers)):
        share = right if place == other else 1 - right if other == (place + 1) % len(centers) else 0.0
        rows.append((center, predicted, round(20 * share), share))
    table = pd.DataFrame(rows, columns=["center", "predicted", "images", "share"])
    return table.assign(balanced_accuracy=right, low=right - 0.1, high=right + 0.05, chance=1 / len(centers), patients=7 * len(centers))


@pytest.mark.parametrize("count", [2, 8])
def test_center_confusion_states_accuracy_and_chance(count: int, tmp_path):
    centers = ["a centre with a very long name indeed", "Łódź $1", *(f"c{i}" for i in range(6))][:count]
    table = confusion(centers, 0.8)
    figure = heterogeneity.center_confusion(table)
    axis, bar = figure.axes
    assert axis.get_title(loc="left") == f"Balanced accuracy 0.80\n95 % interval 0.70 to 0.85, chance {1 / count:.2f}"
    written = [text.get_text() for text in axis.texts]
    assert written.count("80 %\n(16)") == count and written.count("20 %\n(4)") == count
    assert written.count("0") == count * count - 2 * count
    assert [line.get_ydata()[0] for line in bar.lines] == [pytest.approx(1 / count)]
    assert f"{20 * count} images of {7 * count} patients" in figure.get_supxlabel().replace("\n", " ")
    assert not colliding_texts(figure)
    save_figure(figure, table, tmp_path, "confusion")


@pytest.mark.parametrize("count", [2, 6, 8])
def test_center_distances_shows_each_pair_once(count: int, tmp_path):
    table = center_distances(samples.color_profile(pictures([f"centre {i}" for i in range(count)])))
    figure = heterogeneity.center_distances(table)
    *panels, bar = figure.axes
    assert [axis.get_title(loc="left") for axis in panels] == ["red", "green", "blue"]
    for axis in panels:
        assert len(axis.texts) == count * (count - 1) / 2
        assert axis.collections[0].get_clim() == (0, max(0.1, table["distance"].max()))
    known = table.query("channel == 'red' and center == 'centre 1' and other == 'centre 0'")["distance"].item()
    assert panels[0].texts[0].get_text() == (f"{known:.3f}" if count < 7 else f"{known:.2f}")
    assert bar.get_ylabel() == "Wasserstein distance\n(pixel value, 0 to 1)"
    assert not colliding_texts(figure)
    save_figure(figure, table, tmp_path, "distances")


def test_stains_have_a_scale_of_their_own():
    table = pictures(["A", "B", "C"])
    stains = stain_profile(table)
    lines = heterogeneity.color_distributions(stains)
    assert [axis.get_title(loc="left") for axis in lines.axes] == list(stains["channel"].unique())
    assert all(axis.get_xlabel().startswith("optical density") and axis.get_xlim()[1] < 1.5 for axis in lines.axes)
    assert "99.5 %" in lines.get_supxlabel()
    narrow = stains.assign(density=stains["density"] * np.where(stains["channel"] == "eosin", 20, 1))
    tops = [axis.get_ylim()[1] for axis in heterogeneity.color_distributions(narrow).axes]
    assert tops[1] / tops[0] == pytest.approx(20 * lines.axes[1].get_ylim()[1] / lines.axes[0].get_ylim()[1])
    distances = center_distances(stains)
    assert heterogeneity.center_distances(distances).axes[-1].get_ylabel().endswith("(optical density)")
    with pytest.raises(ValueError, match="differ in unit, got haematoxylin, eosin, red, green, blue"):
        heterogeneity.center_distances(pd.concat([distances, center_distances(samples.color_profile(table))]))
    with pytest.raises(ValueError, match="at least 2 centers, got A"):
        heterogeneity.center_distances(distances.query("center == 'A' and other == 'A'"))


def test_table_one_is_the_papers(tmp_path):
    table = pd.read_csv(TABLE_1)
    figure = heterogeneity.table_one(table)
    (axis,) = figure.axes
    written = [text.get_text() for text in axis.texts]
    assert figure.get_figwidth() <= DOUBLE + 1e-9
    assert [w for w in written if w in "ABCDEF"] == list("ABCDEF")
    assert (written.count("train"), written.count("test"), written.count("external")) == (4, 4, 2)
    assert (written.count("NMI"), written.count("MI")) == (10, 10)
    numbers = [f"{n}" for n in table[[c for c in table if c == "n" or c.startswith(("figo", "histology"))]].to_numpy().ravel()]
    numbers += [f"{age:.1f}" if age == age else "–" for age in table[["age_mean", "age_std"]].to_numpy().ravel()]
    assert sorted(w for w in written if w[0].isdigit() or w == "–") == sorted(numbers)
    assert min(text.get_fontsize() for text in axis.texts) >= 6
    assert not colliding_texts(figure)
    assert "no myometrial invasion" in figure.get_supxlabel() and "single patient" in figure.get_supxlabel()
    save_figure(figure, table, tmp_path, "table_one")


def test_table_one_of_many_centres_with_long_names_goes_on_below():
    paper = pd.read_csv(TABLE_1)
    longer = {"A": "University hospital $1", "E": "An external hospital", "F": "Another such hospital"}
    table = pd.concat([paper, paper.assign(center=[longer.get(c, f"{c} 2") for c in paper["center"]])])
    figure = heterogeneity.table_one(table)
    assert figure.get_figheight() > 1.8 * heterogeneity.table_one(paper).get_figheight()
    assert [text.get_text() for text in figure.axes[0].texts].count("FIGO stage") == 2
    assert not colliding_texts(figure)


def test_table_one_without_a_patient_table_has_dashes():
    table = pd.read_csv(TABLE_1).head(4).assign(label=["benign", "malignant"] * 2)
    unknown = [c for c in table if c.startswith(("age", "figo", "histology"))]
    table = table.assign(**{c: pd.array([pd.NA] * 4, dtype="Int64") for c in unknown})
    figure = heterogeneity.table_one(table)
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written.count("–") == 4 * 8 and {"49", "361", "34", "241"} <= set(written)
    assert "myometrial" not in figure.get_supxlabel() and not colliding_texts(figure)
