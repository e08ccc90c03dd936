"""Prostate phantoms: the files as the reader of sites finds them, what makes the centres differ, and what a threshold finds."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from skimage.filters import threshold_otsu

from vfmgl_lib.data.preprocessing import VolumeSlice, volume_slices
from vfmgl_lib.tasks import phantoms
from vfmgl_lib.tasks.cases import Findings
from vfmgl_lib.tasks.painting.sampling import blend
from vfmgl_lib.tasks.phantoms import write_phantoms
from vfmgl_lib.tasks.prostate import phantom as prostate
from vfmgl_lib.tasks.prostate.reader import cases_sites, recognise_sites

SAMPLES = {"train": 2, "val": 1, "test": 1}


def write(root: Path, **changes) -> Path:
    arguments = {"centers": 2, "samples": SAMPLES, "image_size": 32, "heterogeneity": 1.0, "seed": 3}
    return write_phantoms(root, "prostate", **(arguments | changes))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def images(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def volumes(count: int, size: int, heterogeneity: float, centers: int = 4, seed: int = 1) -> list[tuple[int, list[VolumeSlice]]]:
    """(centre, slices as the network sees them) of `count` volumes a centre."""
    found = []
    for sample in prostate.plan(centers, {"train": count}, heterogeneity, seed):
        arrays = (np.asarray(images(file).dataobj).T for file in prostate.render(sample, size, heterogeneity, seed))
        found.append((sample.center, volume_slices(*arrays)))
    return found


def test_same_arguments_give_same_bytes(tmp_path):
    first, second = contents(write(tmp_path / "a")), contents(write(tmp_path / "b"))
    assert first == second
    other = contents(write(tmp_path / "c", seed=4))
    files = [name for name in first if name.endswith(".nii.gz")]
    assert len(files) == 16 and len({first[name] for name in files}) == 16
    assert all(first[name] != other[name] for name in files)
    assert all(first[name][4:8] == bytes(4) for name in files), "no time of writing in the gzip header"


def test_the_reader_of_sites_reads_them(tmp_path):
    root = write(tmp_path / "with space and ü", centers=6)
    assert recognise_sites(root)
    findings = Findings()
    cases = cases_sites(root, findings)
    assert findings == Findings()
    assert [(case.center, case.name) for case in cases] == [
        (center, f"Case{number:02d}") for center in sorted(prostate.CENTER_NAMES) for number in range(4)
    ]
    assert len({case.patient for case in cases}) == 24
    for case in cases:
        pictures = case.read()
        assert 8 <= len(pictures) <= 12, case
        view = prostate.CENTERS[prostate.CENTER_NAMES.index(case.center)].field_of_view
        assert pictures[0].spacing == pytest.approx((view / 32, view / 32), abs=1e-5)
        assert pictures[0].image.shape == (32, 32, 3)


def test_an_interrupted_write_is_completed_and_a_finished_one_reused(tmp_path, monkeypatch):
    whole = contents(write(tmp_path / "whole"))
    real, done = phantoms.write_bytes, []

    def failing(path, content):
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append(path)
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "write_bytes", failing)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "cut")
    assert contents(write(tmp_path / "cut")) == whole
    monkeypatch.setattr(prostate, "render", None)
    assert contents(write(tmp_path / "cut")) == whole


def test_more_volumes_and_another_division_keep_the_earlier_ones(tmp_path):
    few = contents(write(tmp_path / "few"))
    more = contents(write(tmp_path / "more", centers=3, samples={"train": 1, "test": 5}))
    files = [name for name in few if name.endswith(".nii.gz")]
    assert all(more[name] == few[name] for name in files)


def test_fewer_volumes_than_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"at least 3 volumes a site.* got \{'train': 2"):
        write(tmp_path / "new", samples={"train": 2})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("heterogeneity", [0.0, 2.0])
@pytest.mark.parametrize("size", [32, 65])
def test_extreme_settings_render(size, heterogeneity):
    for sample in prostate.plan(6, {"train": 1}, heterogeneity, 9):
        volume, mask = map(images, prostate.render(sample, size, heterogeneity, 9))
        assert volume.shape == mask.shape and volume.shape[:2] == (size, size) and 10 <= volume.shape[2] <= 14
        assert volume.get_data_dtype() == np.int16 and mask.get_data_dtype() == np.uint8
        assert set(np.unique(mask.dataobj)) == {0, 1}
        assert np.asarray(volume.dataobj).std() > 10
        np.testing.assert_allclose(volume.affine, mask.affine)
        assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")


def test_the_gland_is_one_piece_in_the_middle():
    for _, slices in volumes(2, 64, 1.0, centers=6):
        for found in slices:
            rows, columns = np.nonzero(found.mask)
            assert 0.25 < rows.mean() / 64 < 0.65 and 0.35 < columns.mean() / 64 < 0.65
        largest = max(found.mask.mean() for found in slices)
        assert 0.02 < largest < 0.16


def test_heterogeneity_0_makes_the_centers_alike():
    profiles = {blend(prostate.COMMON, center, 0.0) for center in prostate.CENTERS}
    assert profiles == {prostate.COMMON}
    spacings = {
        heterogeneity: {
            tuple(images(prostate.render(sample, 32, heterogeneity, 0)[0]).header.get_zooms())
            for sample in prostate.plan(6, {"train": 1}, heterogeneity, 0)
        }
        for heterogeneity in (0.0, 1.0)
    }
    assert len(spacings[0.0]) == 1 and len(spacings[1.0]) == 6


def test_heterogeneity_separates_the_centers():
    def separation(heterogeneity: float) -> float:
        """Variance between the centres' mean signals over what chance gives (F statistic; 1 where alike)."""
        features = [
            (center, [np.mean([s.image.mean() for s in slices]), np.mean([s.image[:10].mean() for s in slices])])
            for center, slices in volumes(5, 32, heterogeneity)
        ]
        groups = [np.array([value for center, value in features if center == k]) for k in range(4)]
        between = np.sum([len(g) * (g.mean(0) - np.concatenate(groups).mean(0)) ** 2 for g in groups], axis=0) / 3
        within = np.sum([((g - g.mean(0)) ** 2).sum(0) for g in groups], axis=0) / (len(features) - 4)
        return float(np.mean(between / within))

    assert separation(0.0) < 3.0
    assert separation(1.0) > 10.0


@pytest.mark.parametrize("heterogeneity", [0.0, 1.0])
def test_a_threshold_does_not_find_the_gland(heterogeneity):
    """Otsu's, the better side of it: about 0.1 to 0.2 in real volumes too."""
    dice = []
    for _, slices in volumes(2, 64, heterogeneity, centers=6):
        for found in slices:
            grey, true = found.image[..., 1], found.mask > 0
            for side in (grey > threshold_otsu(grey), grey <= threshold_otsu(grey)):
                dice.append(2 * (side & true).sum() / (side.sum() + true.sum()))
    assert np.mean(np.max(np.reshape(dice, (-1, 2)), axis=1)) < 0.25


def test_neighbouring_slices_are_alike():
    for _, slices in volumes(2, 48, 0.0, centers=1):
        pairs = [(s.image[..., 0].ravel(), s.image[..., 1].ravel()) for s in slices]
        assert np.mean([np.corrcoef(pair)[0, 1] for pair in pairs]) > 0.8
        assert all((first != second).any() for first, second in pairs)


def test_the_endorectal_coil_falls_off():
    """A body of even signal: bright at the balloon, a fraction of it far away; without a coil nearly even."""
    distance = np.tile(np.linspace(0, 80, 64), (3, 64, 1))
    shares = {}
    for name, center in zip(prostate.CENTER_NAMES, prostate.CENTERS, strict=True):
        measured = prostate._acquire(np.ones((3, 64, 64)), distance, np.random.default_rng(0), center)
        middle = measured[:, 28:36].mean((0, 1))
        shares[name] = middle[-4:].mean() / middle[:4].mean()
    assert all(shares[name] < 0.6 for name in ("BIDMC", "HK", "ISBI_1.5"))
    assert all(0.8 < shares[name] < 1.25 for name in ("I2CVB", "ISBI", "UCL"))
    assert shares["BIDMC"] < shares["HK"]
