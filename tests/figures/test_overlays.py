"""Predicted and true masks of all methods side by side."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.contour import QuadContourSet
from PIL import Image

from vfmgl_lib.data.label_masks import class_color
from vfmgl_lib.evaluation.samples import overlay_table, telling_images
from vfmgl_lib.figures import overlays
from vfmgl_lib.methods.registry import METHODS

SIDE = 32
SQUARE = (slice(10, 20), slice(8, 18))


def final_table(dice: dict[str, list[float]]) -> pd.DataFrame:
    """Final predictions: method -> the Dice of images 0, 1, …; the last image has no foreground."""
    rows = []
    for method, values in dice.items():
        for place, value in enumerate(values):
            foreground = 10 * (place < len(values) - 1)
            about = {"method": method, "seed": 0, "split_id": "own", "budget": "rounds", "model_center": "A", "test_center": "A"}
            rows.append({**about, "split": "test", "id": f"A/{place}", "tp": foreground // 2, "fn": foreground // 2, "dice": value})
    return pd.DataFrame(rows).assign(mask_path="")


DICE = {"fedavg": [0.1, 0.9, 0.5, 0.6, 1.0], "vfmgl": [0.9, 0.6, 0.4, 0.9, 1.0]}  # means 0.5, 0.75, 0.45, 0.75


def test_images_are_chosen_by_the_mean_or_by_one_method():
    final = final_table(DICE)
    chosen = telling_images(final)
    assert chosen[["shown", "id"]].values.tolist() == [["best", "A/1"], ["median", "A/3"], ["worst", "A/2"]]
    assert chosen["score"].tolist() == pytest.approx([0.75, 0.75, 0.45]) and set(chosen["by"]) == {"mean"}
    by_one = telling_images(final, by="fedavg")
    assert by_one["id"].tolist() == ["A/1", "A/3", "A/0"] and by_one["score"].tolist() == [0.9, 0.6, 0.1]
    few = telling_images(final_table({"vfmgl": [0.3, 0.8, 1.0]}))
    assert few[["shown", "id"]].values.tolist() == [["best", "A/1"], ["worst", "A/0"]]
    with pytest.raises(ValueError, match="choose from by 'hgkt', methods are fedavg, vfmgl"):
        telling_images(final, by="hgkt")
    with pytest.raises(ValueError, match="one seed, got 0, 1"):
        telling_images(pd.concat([final, final.assign(seed=1)]))


def samples(side: int = SIDE) -> pd.DataFrame:
    mask = np.zeros((side, side), bool)
    mask[SQUARE] = True
    return pd.DataFrame({"id": [f"A/{i}" for i in range(5)], "image": [np.full((side, side, 3), 0.5)] * 5, "mask": [mask] * 5})


def test_masks_are_read_beside_their_images(tmp_path):
    final = final_table(DICE)
    Image.fromarray((samples()["mask"][0] * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    final.loc[final["method"] == "vfmgl", "mask_path"] = str(tmp_path / "mask.png")
    chosen = telling_images(final)
    table = overlay_table(chosen, samples(), final)
    assert table["shown"].tolist() == ["best", "best", "median", "median", "worst", "worst"]
    assert [mask is None for mask in table["mask"]] == [True, False] * 3
    assert np.array_equal(table["mask"][1], samples()["mask"][0]) and table["dice"].tolist() == [0.9, 0.6, 0.6, 0.9, 0.5, 0.4]
    with pytest.raises(ValueError, match=r"mask.png is \(32, 32\), its image \(48, 48\)"):
        overlay_table(chosen, samples(48), final)


def drawn_table(methods: list[str]) -> pd.DataFrame:
    """Three images; in the worst fedavg finds nothing, and of the median hgkt's mask was not kept."""
    truth = samples()["mask"][0]
    rows = []
    for shown, score in (("best", 0.9), ("median", 0.8), ("worst", 0.3)):
        for place, method in enumerate(methods):
            mask = np.zeros_like(truth) if (shown, method) == ("worst", "fedavg") else np.roll(truth, place, axis=0)
            mask = None if (shown, method) == ("median", "hgkt") else mask
            about = {"shown": shown, "id": shown, "center": "University hospital of the north", "score": score, "by": "mean"}
            rows.append({**about, "image": np.full((SIDE, SIDE, 3), 0.5), "truth": truth, "method": method, "mask": mask, "dice": 0.5})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("methods", [["fedavg", "hgkt", "vfmgl"], list(METHODS)])
def test_every_method_is_outlined_on_every_image(methods, collisions):
    figure = overlays.overlays(drawn_table(methods))
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 3 * (len(methods) + 1)
    contours = [sum(isinstance(artist, QuadContourSet) for artist in axis.collections) for axis in shown]
    width = len(methods) + 1
    assert contours[:width] == [0] + [2] * len(methods)
    said = [[text.get_text() for text in axis.texts] for axis in shown]
    assert said[1] == ["0.50"] and said[2 * width + 1 + methods.index("fedavg")] == ["nothing found\n0.50"]
    assert contours[2 * width + 1 + methods.index("fedavg")] == 1
    assert said[width + 1 + methods.index("hgkt")] == ["mask not kept\n0.50"] and contours[width + 1 + methods.index("hgkt")] == 1
    titles = [axis.get_title(loc="left").replace("\n", " ") for axis in shown[:width]]
    assert titles == ["image", *(METHODS[method].title for method in methods)]
    words = figure.get_supxlabel().replace("\n", " ")
    assert "chosen by the mean of the methods' Dice" in words and "not drawn: " not in words
    assert not collisions(figure)


def test_several_classes_have_a_colour_and_an_entry_of_the_legend_each(collisions):
    table = drawn_table(["fedavg", "hgkt", "vfmgl"])
    several = {"truth": [mask.astype(np.uint8) * 2 for mask in table["truth"]]}
    several["truth"][0] = several["truth"][0] + np.roll(several["truth"][0], 12, axis=1) // 2
    several["mask"] = [None if mask is None else mask.astype(np.uint8) * 2 for mask in table["mask"]]
    table = table.assign(**{name: pd.Series(masks, dtype=object) for name, masks in several.items()})
    names = ("background", "a very long name of a class indeed, and more", "12")
    figure = overlays.overlays(table, classes=names)
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries[:2] == ["truth", "prediction"] and entries[3] == "class 12" and entries[2].startswith("a very long name")
    colors = {to_hex(contour.get_edgecolor()[0]) for axis in figure.axes for contour in axis.collections}
    assert colors == {class_color(1).lower(), class_color(2).lower()}
    assert "the mean over the foreground classes" in figure.get_supxlabel().replace("\n", " ")
    assert not collisions(figure)


def test_a_method_without_the_image_says_so():
    table = drawn_table(["fedavg", "vfmgl"])
    figure = overlays.overlays(table.drop(index=1))
    assert [text.get_text() for text in figure.axes[2].texts] == ["no prediction"]


def test_a_row_is_cut_to_what_is_outlined():
    truth = samples(100)["mask"][0]
    rows, columns = overlays._window([truth, np.roll(truth, 30, axis=1)])
    assert rows.stop - rows.start == columns.stop - columns.start == 52
    assert rows.start <= 10 and rows.stop >= 20 and columns.start <= 8 and columns.stop >= 48
    assert overlays._window([np.zeros((9, 9), bool)]) == (slice(None), slice(None))
    alone = np.zeros((100, 100), bool)
    alone[99, 99] = True
    assert overlays._window([alone]) == (slice(60, 100), slice(60, 100))
