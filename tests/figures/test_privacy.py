"""The figure of what a server could see."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.inversion import TRUE
from vfmgl_lib.figures import privacy
from vfmgl_lib.figures.style import save_figure


def table(images: int, views: dict[str, float]) -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows = []
    for view, epsilon in ({TRUE: np.nan} | views).items():
        for place in range(images):
            about = {"view": view, "epsilon": epsilon, "id": f"A/{place}", "image": random.random((32, 32, 3), dtype=np.float32)}
            rows.append(about | {"psnr": np.inf if view == TRUE else 12.3, "ssim": 1.0 if view == TRUE else 0.45})
    return pd.DataFrame(rows)


VIEWS = {"centre's mean image": np.nan, "one step": np.inf, "one local epoch, float16_change, noise 0.001": 2.0096e6, "noise 2": 7.9}


@pytest.mark.parametrize("images", [1, 2, 7])
def test_rows_are_views_and_columns_images(images, collisions, tmp_path):
    figure = privacy.reconstructions(table(images, VIEWS))
    shown = min(images, privacy.PER_ROW)
    assert len(figure.axes) == 5 * shown
    assert all(len(axis.images) == 1 for axis in figure.axes)
    labels = [figure.axes[line * shown].get_ylabel() for line in range(5)]
    assert labels[0] == TRUE and labels[2] == "one step", "an infinite epsilon is not printed"
    assert [figure.axes[line * shown].yaxis.label.get_color() == privacy.MUTED for line in range(5)] == [False, True, False, False, False]
    assert labels[3].endswith("$2 \\times 10^{6}$") and labels[4].endswith("= 7.9")
    assert [axis.get_xlabel() for axis in figure.axes[: shown + 1]] == [*(f"image {i + 1}" for i in range(shown)), "12.3 dB, 0.45"]
    assert collisions(figure) == []
    assert figure.get_figwidth() <= privacy.DOUBLE + 1e-6
    save_figure(figure, table(images, VIEWS).drop(columns="image"), tmp_path, "inversion", "Data: made up.")
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".pdf", ".csv"}
    assert collisions(figure) == []


def test_true_images_are_needed():
    with pytest.raises(ValueError, match="there is no 'true images' to hold the others against"):
        privacy.reconstructions(table(1, VIEWS)[1:])


@pytest.mark.parametrize(("value", "printed"), [(0.123, "0.12"), (8.837, "8.8"), (766.2, "770"), (61660, "$6 \\times 10^{4}$")])
def test_epsilon_is_printed_to_two_digits(value, printed):
    assert privacy._plain(value) == printed
