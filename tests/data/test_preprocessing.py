"""From a volume to network input: values, channels, which slices are kept, and volumes that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from vfmgl_lib.data.preprocessing import near_integers, squashed, to_bytes, volume_slices


def ramp(slices: int = 5) -> np.ndarray:
    """(slices, 10, 10): every voxel another value, counting up from 0."""
    return np.arange(slices * 100, dtype=np.float64).reshape(slices, 10, 10)


def test_values_are_clipped_scaled_and_rounded_down():
    image = volume_slices(ramp())[1].image
    # 500 voxels 0 to 499: the 0.99 quantile lies at 0.99 * 499 = 494.01.
    for row, column, channel in ((0, 0, 0), (3, 7, 1), (9, 9, 2)):
        value = (channel + 1) * 100 + row * 10 + column
        assert image[row, column, channel] == int(value / 494.01 * 255)
    assert image.dtype == np.uint8 and image.shape == (10, 10, 3)
    top = volume_slices(ramp())[2].image[..., 2]
    assert (top.ravel()[-5:] == 255).all() and top.ravel()[-6] == 254, "what is above the quantile is white, and only that"


def test_offset_and_unit_do_not_matter():
    volume = ramp()
    for other in (volume.astype(np.int16), volume.astype(np.float32), volume - 1000, volume / 1024):
        for first, second in zip(volume_slices(volume), volume_slices(other), strict=True):
            assert np.abs(first.image.astype(int) - second.image).max() <= 1
    np.testing.assert_array_equal(volume_slices(volume)[0].image, volume_slices(volume.astype(np.int16))[0].image)


def test_neighbours_are_channels_and_the_mask_is_the_middle_ones():
    mask = np.zeros((5, 10, 10), bool)
    mask[2, 4, 4] = mask[3, 5, 5] = True
    slices = volume_slices(ramp(), mask)
    assert [found.index for found in slices] == [2, 3]
    assert [found.mask.sum() for found in slices] == [1, 1] and slices[0].mask[4, 4] == 1 and slices[1].mask[5, 5] == 1
    assert slices[0].mask.dtype == np.uint8
    np.testing.assert_array_equal(slices[0].image[..., 1], slices[1].image[..., 0])
    np.testing.assert_array_equal(slices[0].image[..., 2], slices[1].image[..., 1])
    assert (np.diff(slices[0].image.astype(int), axis=-1) > 0).all(), "below, itself, above"


def test_edge_and_empty_slices_are_dropped():
    mask = np.ones((5, 10, 10), np.uint8)
    assert [found.index for found in volume_slices(ramp(), mask)] == [1, 2, 3]
    mask[2] = 0
    assert [found.index for found in volume_slices(ramp(), mask)] == [1, 3]
    mask[1:4] = 0
    assert volume_slices(ramp(), mask) == []


def test_without_a_mask_all_slices_but_the_edges_are_kept():
    slices = volume_slices(ramp(7))
    assert [found.index for found in slices] == [1, 2, 3, 4, 5]
    assert all(found.mask is None for found in slices)


def test_a_prediction_sees_what_training_saw():
    mask = np.zeros((5, 10, 10))
    mask[3, 1, 1] = 1
    (trained,) = volume_slices(ramp(), mask)
    np.testing.assert_array_equal(volume_slices(ramp())[2].image, trained.image)


def test_the_volume_is_left_alone():
    volume = ramp()
    volume_slices(volume, np.ones_like(volume))
    np.testing.assert_array_equal(volume, ramp())


def nan_at(value: float) -> np.ndarray:
    volume = ramp()
    volume[1, 2, 3] = value
    return volume


@pytest.mark.parametrize(
    ("volume", "mask", "message"),
    [
        (np.zeros((4, 4)), None, r"volume must be \(D, H, W\), got 2 dimensions, \(4, 4\)"),
        (np.zeros((4, 4, 4, 2)), None, "got 4 dimensions"),
        (ramp(2), None, r"at least 3 slices.* got \(D, H, W\) = \(2, 10, 10\)"),
        (np.zeros((4, 0, 4)), None, r"got \(D, H, W\) = \(4, 0, 4\)"),
        (nan_at(np.nan), None, "1 NaN or infinite voxels of 500"),
        (nan_at(np.inf), None, "1 NaN or infinite voxels of 500"),
        (np.full((4, 5, 5), 7), None, "no contrast.* both 7"),
        (np.eye(1, 1000).reshape(10, 10, 10), None, "no contrast.* both 0"),
        (ramp(), np.zeros((5, 10, 9)), r"shape \(5, 10, 10\), got \(5, 10, 9\)"),
        (ramp(), np.full((5, 10, 10), 2), "0 and 1 only, got 2"),
    ],
)
def test_unusable_volumes(volume, mask, message):
    with pytest.raises(ValueError, match=message):
        volume_slices(volume, mask)


def test_intensities_are_clipped_spread_and_rounded_down():
    values = np.zeros((1, 20, 50), np.float32)
    values[0, 0, :2], values[0, 1] = (5000.0, -100.0), 100.0
    scaled = to_bytes(values)
    assert scaled[0, 0, 0] == scaled[0, 1, 0] == 255  # clipped: 1 of 1000 is above the 0.99 quantile
    assert scaled[0, 0, 1] == 0 and scaled[0, 5, 5] == 127 and scaled.dtype == np.uint8


def test_squashed_is_antialiased_and_keeps_channels():
    stripes = np.zeros((8, 16, 3), np.uint8)
    stripes[:, ::2] = 255
    small = squashed(Image.fromarray(stripes), 4)
    assert small.shape == (4, 4, 3) and abs(small.astype(int) - 127).max() < 40


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.uint8, bool])
def test_near_integers_are_rounded(kind):
    values = np.array([[0, 1], [1, 0]], kind)
    if values.dtype.kind == "f":
        values += np.array([[9e-4, -2e-10], [0, -9e-4]], kind)
    found = near_integers(values)
    assert found.dtype == np.int64 and found.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(("value", "shown"), [(0.5, "0.5"), (1.002, "1.002"), (0.9989, "0.9989"), (np.nan, "nan"), (np.inf, "inf")])
def test_what_is_not_near_a_whole_number_is_refused(value, shown):
    with pytest.raises(ValueError, match=rf"found {shown}, expected whole numbers \(within 0.001\)"):
        near_integers(np.array([0.0, 1.0, value]))


def test_a_mask_of_several_classes_keeps_them():
    volume = np.random.default_rng(0).normal(size=(5, 4, 6))
    mask = np.zeros(volume.shape, int)
    mask[1, 0, 0], mask[3, 2, 2] = 2, 1
    found = volume_slices(volume, mask, 3)
    assert [(piece.index, int(piece.mask.max())) for piece in found] == [(1, 2), (3, 1)]
    with pytest.raises(ValueError, match="mask must hold 0 and 1 only, got 0, 1, 2"):
        volume_slices(volume, mask)
    with pytest.raises(ValueError, match="mask must hold 0 to 2 only, got 0, 3"):
        volume_slices(volume, np.where(mask > 0, 3, 0), 3)
