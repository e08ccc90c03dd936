"""Artefacts of phantoms: which images have them, what they change, and that no reader takes their table for data."""

import gzip
import io
import json
from collections import Counter

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vfmgl_lib.tasks.painting.artefacts import DRAW, Artefact, chosen_samples
from vfmgl_lib.tasks.painting.sampling import Sample
from vfmgl_lib.tasks.phantoms import ARTEFACTS, generator_of, read_artefacts, write_phantoms
from vfmgl_lib.tasks.prepare import phantoms_of, prepare

SAMPLES = {
    "endometrial": {"train": 20, "test": 6},
    "camelyon17": {"train": 24, "test": 6},
    "prostate": {"train": 6, "val": 1, "test": 2},
    "nuclei": {"train": 20, "val": 5, "test": 6},
}
WITH_SPLITS = ("endometrial", "nuclei")


def write(root, task, share=0.1, seed=3):
    return write_phantoms(root, task, centers=2, samples=SAMPLES[task], image_size=32, artefacts=share, seed=seed)


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def truth(root):
    return pd.read_csv(root / ARTEFACTS, dtype=str, keep_default_na=False)


def pixels(content: bytes, path: str) -> np.ndarray:
    """(D, H, W) of a volume, (1, …) of an image."""
    if path.endswith(".nii.gz"):
        return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj).T
    return np.asarray(Image.open(io.BytesIO(content)))[None]


@pytest.mark.parametrize("task", SAMPLES)
def test_what_the_table_names_is_what_differs(tmp_path, task):
    """Against the set without artefacts: these images or slices differ, all other files are the same to the byte."""
    clean, marred = contents(write(tmp_path / "clean", task, 0)), contents(write(tmp_path / "marred", task))
    assert clean.keys() == marred.keys()
    none, table = truth(tmp_path / "clean"), truth(tmp_path / "marred")
    assert (none["artefact"] == "").all() and none["path"].tolist() == table["path"].tolist()
    named = set(table.loc[table["artefact"] != "", "path"])
    assert named and named == {name for name in clean if clean[name] != marred[name]} - {"phantoms.json", ARTEFACTS}
    for path, rows in table[table["path"].isin(named)].groupby("path"):
        before, after = pixels(clean[path], path), pixels(marred[path], path)
        differs = [(a.astype(float) - b).std() > 0.02 * a.astype(float).std() for a, b in zip(before, after, strict=True)]
        assert differs == (rows["artefact"] != "").tolist(), path
    assert write(tmp_path / "marred", task) and contents(tmp_path / "marred") == marred


@pytest.mark.parametrize("task", SAMPLES)
def test_a_share_of_the_training_images_and_one_kind_a_center(tmp_path, task):
    table = truth(write(tmp_path, task))
    generator = generator_of(task)
    planned = {path: sample for sample in generator.plan(2, SAMPLES[task], 1.0, 3) for path in sample.paths}
    table["center"], table["split"] = ([getattr(planned[path], name) for path in table["path"]] for name in ("center", "split"))
    for center in range(2):
        own = table[(table["center"] == center) & (table["split"] == "train")]
        assert set(own["artefact"]) == {"", generator.ARTEFACTS[center]}
        assert 0.05 < (own["artefact"] != "").mean() < 0.17
    held_out = table[table["split"] != "train"]
    assert (len(held_out) > 0) == (task in WITH_SPLITS)
    assert (held_out["artefact"] == "").all()


def test_every_center_has_a_kind_of_its_own():
    for task in SAMPLES:
        generator = generator_of(task)
        kinds = [kind for kind in generator.ARTEFACTS if kind]
        external = len(getattr(generator, "EXTERNAL_CENTERS", ()))
        assert len(generator.ARTEFACTS) == len(generator.CENTER_NAMES) == len(kinds) + external
        assert len(set(kinds)) == len(kinds) and set(kinds) <= set(DRAW)


@pytest.mark.parametrize("task", SAMPLES)
def test_no_reader_takes_the_table_for_data(tmp_path, task):
    """A set prepared with the table and one without it have the same samples, and no warning names it."""
    root = write(tmp_path / "source", task)
    done = prepare(task, root, tmp_path / "out", progress=False)
    assert not [text for text in done.warnings if "artefact" in text]
    assert phantoms_of(done.manifest) == root.resolve()
    kinds = read_artefacts(root, done.manifest.table)
    assert kinds.index.tolist() == done.manifest.table["id"].tolist() and set(kinds) - {""}
    assert not any("artefact" in str(value) for value in done.manifest.table.to_numpy().ravel())
    (root / ARTEFACTS).unlink()
    again = prepare(task, root, tmp_path / "without", progress=False)
    assert again.manifest.sha256 == done.manifest.sha256 and again.warnings == done.warnings
    assert read_artefacts(root, done.manifest.table) is None


def test_a_prepared_slice_has_the_artefact_of_its_slice(tmp_path):
    """Also at a centre with a dot in its name. The others of its volume are the same but for the volume's normalisation."""
    pictures, kinds = {}, None
    for share in (0.0, 0.1):
        root = write_phantoms(tmp_path / f"s{share}", "prostate", centers=5, samples={"train": 5}, image_size=32, artefacts=share, seed=1)
        done = prepare("prostate", root, tmp_path / f"p{share}", progress=False).manifest
        pictures[share] = {row.id: np.asarray(Image.open(done.root / row.path)).astype(float) for row in done.table.itertuples()}
        kinds = read_artefacts(root, done.table)
    assert kinds[kinds.index.str.startswith("ISBI_1.5/")].isin(["", "zipper"]).all()
    # The middle channel is the slice itself.
    alike = {name: np.corrcoef(image[..., 1].ravel(), pictures[0.0][name][..., 1].ravel())[0, 1] for name, image in pictures[0.1].items()}
    differs = {name for name, value in alike.items() if value < 0.98}
    assert differs and differs == set(kinds.index[kinds != ""])


def test_a_sample_that_is_none_of_the_phantoms(tmp_path):
    root = write(tmp_path / "source", "nuclei")
    table = prepare("nuclei", root, tmp_path / "out", progress=False).manifest.table
    with pytest.raises(ValueError, match=r"SiteA/train/x_7 is not one of the phantoms that .*artefacts\.csv lists, such as SiteA/train"):
        read_artefacts(root, table.head(1).assign(id="SiteA/train/x_7", path="SiteA/train/images/x_7.png"))


def test_another_share_is_refused_in_the_same_folder_and_out_of_range(tmp_path):
    root = write(tmp_path / "a", "nuclei")
    assert json.loads((root / "phantoms.json").read_text())["artefacts"] == 0.1
    with pytest.raises(FileExistsError, match=r"artefacts 0\.1 instead of 0\.2"):
        write(tmp_path / "a", "nuclei", 0.2)
    for value in (-0.1, 1.1, float("nan"), True, "0.1"):
        with pytest.raises(ValueError, match="artefacts must be a number from 0 to 1, got"):
            write(tmp_path / "b", "nuclei", value)


@pytest.mark.parametrize("share", [0.0, 0.04, 0.1, 0.3, 0.7, 1.0])
def test_any_number_of_samples_has_the_share_to_within_one(share):
    planned = [Sample(center, "train", number, 0, number % 2, (f"{center}{number}",)) for center in range(2) for number in range(200)]
    chosen = chosen_samples(planned, ("zipper", ""), share, "toy", 0)
    assert {sample.center for sample in chosen} <= {0} and len(chosen) == len(set(chosen))
    numbers = np.array([sample.patient for sample in chosen])
    for count in range(1, 201):
        assert abs((numbers < count).sum() - share * count) <= 1
    assert chosen_samples(planned[:50], ("zipper", ""), share, "toy", 0) == [sample for sample in chosen if sample.patient < 50]


def test_artefacts_are_independent_of_the_class():
    """Of 40 seeds together: in each class the share, within three standard errors of its binomial count."""
    counts = Counter()
    for seed in range(40):
        planned = [Sample(0, "train", number, 0, number % 2, (str(number),)) for number in range(100)]
        counts.update(sample.label for sample in chosen_samples(planned, ("zipper",), 0.1, "toy", seed))
    assert counts.total() == 400 and abs(counts[1] - 200) < 3 * 10


@pytest.mark.parametrize("kind", DRAW)
def test_each_kind_is_seen_and_does_not_fill_the_image(kind):
    """At any size: pixels change, what lies under it is not gone everywhere, and the same call gives the same bits."""
    task = next(name for name in SAMPLES if kind in generator_of(name).ARTEFACTS)
    generator, volume = generator_of(task), task == "prostate"
    center = generator.ARTEFACTS.index(kind)
    centers = len(generator.CENTER_NAMES) - len(getattr(generator, "EXTERNAL_CENTERS", ()))
    sample = next(s for s in generator.plan(centers, {"train": 12}, 1.0, 0) if s.center == center)
    for size in (32, 65, 128):
        clean = generator.render(sample, size, 1.0, 0)[0]
        artefact = Artefact(kind, sample, task, 0, range(2, 4) if volume else None)
        marred, again = (generator.render(sample, size, 1.0, 0, artefact=artefact)[0] for _ in range(2))
        if volume:
            clean, marred, again = (pixels(content, "x.nii.gz")[2] for content in (clean, marred, again))
        assert marred.dtype == clean.dtype and marred.shape == clean.shape and (marred == again).all()
        changed = np.abs(marred.astype(float) - clean) > 0.08 * np.quantile(clean, 0.995)
        assert changed.mean() > 0.02
        assert np.corrcoef(marred.ravel(), clean.ravel())[0, 1] > 0.25
