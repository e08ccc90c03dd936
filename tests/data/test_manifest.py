"""The manifest: its table, its checks without a layout, its form on disk."""

import hashlib
import json
import os
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vfmgl_lib.data import images as module
from vfmgl_lib.data.divisions import fold, resplit, with_held_out
from vfmgl_lib.data.images import ImageError, decode_image, decode_mask
from vfmgl_lib.data.inspection import inspect_files
from vfmgl_lib.data.manifest import COLUMNS, Manifest, ManifestError, check_manifest, division_units, table_findings
from vfmgl_lib.data.manifest_files import read_manifest, write_manifest


def write_image(path, seed=0, size=(8, 8), mode="RGB"):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def manifest(tmp_path):
    """Two centres, train and test, four images each, a patient an image."""
    root = tmp_path / "data"
    rows = []
    for center in "AB":
        for split in ("train", "test"):
            for number in range(4):
                path = f"{center}/{split}/{number}.png"
                write_image(root / path, seed=zlib.crc32(path.encode()))
                sha256 = hashlib.sha256((root / path).read_bytes()).hexdigest()
                patient = f"{center}{split}{number}"
                rows.append((path.removesuffix(".png"), path, sha256, center, patient, split, number % 2, ""))
    return Manifest(root, "classification", ("benign", "malignant"), pd.DataFrame(rows, columns=list(COLUMNS)))


def changed(manifest, row, **values):
    table = manifest.table.copy()
    for column, value in values.items():
        table.loc[row, column] = value
    return replace(manifest, table=table)


def problems(manifest, **options):
    with pytest.raises(ManifestError) as caught:
        check_manifest(manifest, **options)
    return caught.value.problems


def test_sound_manifest_has_no_findings(manifest):
    assert check_manifest(manifest) == []


def test_centers_and_select(manifest):
    assert manifest.centers == ("A", "B")
    part = manifest.select("B", "test")
    assert set(part["center"]) == {"B"} and set(part["split"]) == {"test"}
    assert list(part.index) == [0, 1, 2, 3]
    assert len(manifest.select("A", "val")) == 0
    with pytest.raises(ValueError, match="unknown center 'Z', the manifest has A, B"):
        manifest.select("Z")
    with pytest.raises(ValueError, match="unknown split 'testing', expected one of train, val, test"):
        manifest.select(split="testing")


def test_hash_follows_content_not_place(manifest, tmp_path):
    assert replace(manifest, root=tmp_path).sha256 == manifest.sha256
    assert changed(manifest, 3, split="val").sha256 != manifest.sha256
    assert replace(manifest, classes=("malignant", "benign")).sha256 != manifest.sha256
    assert replace(manifest, table=manifest.table.iloc[::-1]).sha256 != manifest.sha256


def many(manifest, count=1000):
    """The same with `count` patients more, all in training: more rows than are read, written and hashed at a time."""
    added = [(f"A/train/n{n}", f"A/train/n{n}.png", f"{n:064x}", "A", f"n{n}", "train", n % 2, "") for n in range(count)]
    return replace(manifest, table=pd.concat([manifest.table, pd.DataFrame(added, columns=list(COLUMNS))]))


@pytest.mark.parametrize("count", [0, 240, 241, 1000])  # with the 16 rows: exactly one part, one row more, several
def test_hash_is_that_of_the_rows_as_json(manifest, count):
    odd = changed(many(manifest, count), 1, patient='Müller, "Ä"\u2028', spacing="0.625,0.7")
    rows = [[str(value) for value in row] for row in odd.table.itertuples(index=False)]
    content = json.dumps(["classification", ["benign", "malignant"], list(COLUMNS), rows], ensure_ascii=False)
    assert odd.sha256 == hashlib.sha256(content.encode()).hexdigest()
    none = replace(manifest, table=manifest.table.head(0))
    content = json.dumps(["classification", ["benign", "malignant"], list(COLUMNS), []])
    assert none.sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_problems_keep_the_order_of_the_rows(manifest):
    large = changed(changed(many(manifest), 700, spacing="x"), 400, split="tr", sha256="abc")
    found = problems(changed(large, 5, center=" "), files=False)
    assert [problem.split(":")[0] for problem in found[:4]] == ["A/test/1.png", "A/train/n384.png", "A/train/n384.png", "A/train/n684.png"]


def test_table_is_a_copy(manifest):
    table = manifest.table.copy()
    kept = replace(manifest, table=table)
    table.loc[0, "split"] = "test"
    assert kept.table.loc[0, "split"] == "train"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("split", "training", "A/train/0.png: split 'training', expected one of train, val, test"),
        ("label", 2, "A/train/0.png: label 2 is not a class, expected one of 0 (benign), 1 (malignant)"),
        ("label", -1, "A/train/0.png: label -1 is not a class"),
        ("sha256", "abc", "A/train/0.png: sha256 'abc', expected 64 hexadecimal digits"),
        ("spacing", "0.5", "A/train/0.png: spacing '0.5', expected '' or two positive numbers"),
        ("spacing", "0.5,-1", "A/train/0.png: spacing '0.5,-1', expected"),
        ("patient", " ", "A/train/0.png: patient is empty, expected a name"),
        ("id", "A/train/1", "id 'A/train/1' occurs 2 times (A/train/0.png, A/train/1.png), expected once"),
        ("path", "A/train/1.png", "path 'A/train/1.png' occurs 2 times"),
    ],
)
def test_wrong_cell(manifest, column, value, message):
    assert any(message in problem for problem in problems(changed(manifest, 0, **{column: value}), files=False))


def test_label_that_is_no_number(manifest):
    table = manifest.table.astype({"label": str})
    table.loc[2, "label"] = "maybe"
    with pytest.raises(ManifestError, match=r"A/train/2.png: label 'maybe' is not a class index, expected one of 0 \(ben"):
        replace(manifest, table=table)


def test_patient_on_both_sides(manifest):
    (problem,) = problems(changed(manifest, 0, patient="Atest1"), files=False)
    assert "center 'A': patient 'Atest1' is in train (A/train/0.png) and test (A/test/1.png)" in problem


def test_patient_in_train_and_val(manifest):
    (problem,) = problems(changed(manifest, 0, patient="Atrain1", split="val"), files=False)
    assert "patient 'Atrain1' is in val (A/train/0.png) and train (A/train/1.png)" in problem


def test_patient_in_two_centers(manifest):
    (problem,) = problems(changed(manifest, 0, patient="Btrain1"), files=False)
    assert "patient 'Btrain1' is in the centers 'A' (A/train/0.png) and 'B' (B/train/1.png)" in problem


def test_center_without_test_samples(manifest):
    table = manifest.table
    table = table[~((table["center"] == "B") & (table["split"] == "test"))]
    (problem,) = problems(replace(manifest, table=table))
    assert problem == "center 'B' has no test samples, expected at least one"


def test_center_with_nothing_but_test_samples_is_external(manifest):
    table = manifest.table
    external = replace(manifest, table=table[~((table["center"] == "B") & (table["split"] != "test"))])
    assert "center 'B' has no training samples: an external test center" in check_manifest(external, files=False)
    assert (external.centers, external.training_centers) == (("A", "B"), ("A",))
    nothing = problems(replace(manifest, table=table[table["split"] == "test"]), files=False)
    assert list(nothing) == [f"center {center!r} has no train samples, expected at least one" for center in ("A", "B")]


def test_same_content_in_two_splits_of_a_center_is_a_problem(manifest):
    other = manifest.table.loc[4]
    assert (other["center"], other["split"]) == ("A", "test")
    (problem,) = problems(changed(manifest, 0, sha256=other["sha256"]), files=False)
    assert "A/train/0.png (train), A/test/0.png (test)" in problem and other["sha256"][:12] in problem
    third = changed(changed(manifest, 0, sha256=other["sha256"]), 12, sha256=other["sha256"])
    assert "is in several splits" in problems(third, files=False)[0], "a copy at another center makes it no better"


def test_same_content_at_two_centers_is_a_warning(manifest):
    other = manifest.table.loc[12]
    assert (other["center"], other["split"]) == ("B", "test")
    (warning,) = check_manifest(changed(manifest, 0, sha256=other["sha256"]), files=False)
    assert "is at 2 centers, in several splits: what one center trains on another tests on" in warning
    assert "A/train/0.png (train), B/test/0.png (test)" in warning and other["sha256"][:12] in warning


def test_lines_of_somebodys_table_are_told(manifest):
    found, _ = table_findings(changed(manifest, 0, patient="Atest1"), lines={"A/train/0.png": 7, "A/test/1.png": 12})
    assert found == [
        "center 'A': patient 'Atest1' is in train (A/train/0.png, line 7) and test (A/test/1.png, line 12), expected in one split only"
    ]


def grouped(manifest, **groups):
    """Groups by row, patients else."""
    table = manifest.table.assign(group=manifest.table["patient"])
    for row, group in groups.items():
        table.loc[int(row[1:]), "group"] = group
    return replace(manifest, table=table)


def test_groups_are_written_read_and_part_of_the_hash(manifest, tmp_path):
    family = grouped(manifest, _0="F", _1="F")
    assert family.sha256 != manifest.sha256 and check_manifest(family) == []
    write_manifest(family, tmp_path / "manifest.csv")
    again = read_manifest(tmp_path / "manifest.csv", manifest.root)
    assert again.table.equals(family.table) and again.sha256 == family.sha256
    assert list(division_units(again.table)[:3]) == ["F", "F", "Atrain2"]
    assert list(division_units(manifest.table)) == list(manifest.table["patient"])


def test_groups_on_both_sides_and_patients_in_two_groups(manifest):
    (problem,) = problems(grouped(manifest, _0="F", _4="F"), files=False)
    assert problem == "center 'A': group 'F' is in train (A/train/0.png) and test (A/test/0.png), expected in one split only"
    (problem,) = problems(grouped(changed(manifest, 1, patient="Atrain0"), _0="F", _1="G"), files=False)
    assert problem == "patient 'Atrain0' is in the groups 'F' (A/train/0.png) and 'G' (A/train/1.png), expected in one"
    (problem,) = problems(grouped(manifest, _0="F", _8="F"), files=False)
    assert problem.startswith("group 'F' is in the centers 'A' (A/train/0.png) and 'B' (B/train/0.png), expected in one only")
    (problem,) = problems(grouped(manifest, _0="Fam", _1="fam"), files=False)
    assert "one name in 2 spellings" in problem


def test_no_division_parts_a_group(manifest):
    table = pd.concat([manifest.table.assign(id=manifest.table["id"] + f"+{n}", path=manifest.table["path"] + f"+{n}",
                                             patient=manifest.table["patient"] + f"+{n}") for n in range(4)])  # fmt: skip
    table = table.assign(split="train", group=[f"{row.center}{row.label}{int(row.patient[-1]) // 2}" for row in table.itertuples()])
    whole = replace(manifest, table=table)
    parted = [with_held_out(whole, 0.4, seed, "test", ("A", "B")) for seed in range(3)] + [fold(whole, 2, 1, 0), resplit(whole, 0.5, 1)]
    for divided in parted:
        units = divided.table.groupby(["center", "group"])["split"].nunique()
        assert (units == 1).all() and {"train", "test"} <= set(divided.table["split"])
        assert divided.table.groupby("group")["patient"].nunique().min() > 1


def test_a_center_without_one_of_three_classes(manifest):
    three = replace(manifest, classes=("benign", "malignant", "unclear"))
    three = changed(changed(three, 0, label=2), 4, label=2)  # only at A
    assert check_manifest(three, files=False) == [
        f"center 'B': none of the 4 {split} samples is of class 'unclear'; "
        "its one-vs-rest AUC there, and the means over the classes, are NaN"
        for split in ("test", "train")
    ]


def test_same_content_inside_a_split_is_a_warning(manifest):
    same = changed(manifest, 0, sha256=manifest.table.loc[3, "sha256"])
    (warning,) = check_manifest(same, files=False)
    assert "there 2 times with different labels: A/train/0.png (train), A/train/3.png (train)" in warning
    same = changed(manifest, 0, sha256=manifest.table.loc[9, "sha256"])
    (warning,) = check_manifest(same, files=False)
    assert "at 2 centers with different labels: A/train/0.png (train), B/train/1.png (train)" in warning


def test_center_with_one_class_is_a_warning(manifest):
    table = manifest.table.copy()
    table.loc[(table["center"] == "B") & (table["split"] == "test"), "label"] = 1
    (warning,) = check_manifest(replace(manifest, table=table))
    assert warning == "center 'B': all 4 test samples are of class 'malignant', AUC is NaN there"


def test_all_problems_are_counted_twenty_are_shown(manifest):
    table = manifest.table.copy()
    table["split"] = [f"s{number}" for number in range(len(table))]
    table["spacing"] = [f"x{number}" for number in range(len(table))]
    with pytest.raises(ManifestError) as caught:
        check_manifest(replace(manifest, table=table), files=False)
    count = len(caught.value.problems)
    assert count >= 32
    lines = str(caught.value).splitlines()
    assert f"{count} problems" in lines[0]
    assert len([line for line in lines if line.startswith("  - ")]) == 20
    assert lines[-1] == f"  … and {count - 20} more"


def test_missing_file_and_missing_root(manifest, tmp_path):
    (manifest.root / "A/train/0.png").unlink()
    (problem,) = problems(manifest)
    assert problem.startswith("A/train/0.png: file not found in ")
    with pytest.raises(ManifestError, match="nowhere: data folder not found"):
        check_manifest(replace(manifest, root=tmp_path / "nowhere"))


def test_changed_file(manifest):
    write_image(manifest.root / "B/test/2.png", seed=99)
    (problem,) = problems(manifest)
    assert problem.startswith("B/test/2.png: sha256 ") and "changed since it was listed" in problem


@pytest.mark.parametrize("path", ["../outside.png", "/etc/hostname", ""])
def test_path_that_leaves_the_root(manifest, path):
    assert any("stay in it" in problem for problem in problems(changed(manifest, 0, path=path)))


@pytest.mark.parametrize("center", ["..", ".", "../B", "/etc", "A/B", "A\0"])
def test_center_that_is_a_path(manifest, center):
    """Folders of sites, logs and checkpoints are named after centres."""
    with pytest.raises(ManifestError, match="expected a name that is no path"):
        changed(manifest, 0, center=center)
    assert changed(manifest, 0, center="<A & B>..").centers, "any other name is one"


def test_link_that_leaves_the_root(manifest, tmp_path):
    outside = write_image(tmp_path / "outside.png")
    inside = manifest.root / "A/train/0.png"
    inside.unlink()
    inside.symlink_to(outside)
    (problem,) = problems(manifest)
    assert problem.startswith("A/train/0.png: leads out of the data folder to ") and str(outside) in problem


def test_wrong_columns_and_task(manifest):
    with pytest.raises(ManifestError, match="columns must be id, path, sha256"):
        replace(manifest, table=manifest.table.drop(columns="sha256"))
    with pytest.raises(ManifestError, match="task_kind must be one of classification, segmentation, got 'detection'"):
        replace(manifest, task_kind="detection")


def test_written_and_read_again(manifest, tmp_path):
    odd = changed(manifest, 1, patient='Müller, "Ä"', id="A/train/名 1", spacing="0.625,0.7")
    write_manifest(odd, tmp_path / "run" / "manifest.csv")
    again = read_manifest(tmp_path / "run" / "manifest.csv", manifest.root)
    pd.testing.assert_frame_equal(again.table, odd.table)
    assert (again.task_kind, again.classes, again.sha256) == (odd.task_kind, odd.classes, odd.sha256)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.csv", "manifest.json"]


def test_many_rows_are_written_and_read_again(manifest, tmp_path):
    large = many(manifest)
    write_manifest(large, tmp_path / "m.csv")
    again = read_manifest(tmp_path / "m.csv", manifest.root)
    pd.testing.assert_frame_equal(again.table, large.table)
    lines = (tmp_path / "m.csv").read_text().splitlines()
    lines[300:300] = ["", "one,two"]
    (tmp_path / "m.csv").write_text("\n".join([*lines, "last"]) + "\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "m.csv", manifest.root)
    assert caught.value.problems == (
        "line 301: 0 fields, expected 8",
        "line 302: 2 fields, expected 8",
        "line 1020: 1 fields, expected 8",
    )


def test_patient_called_NA_stays_text(manifest, tmp_path):
    write_manifest(changed(manifest, 0, patient="NA"), tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv", manifest.root).table.loc[0, "patient"] == "NA"


def test_failed_write_leaves_the_old_file(manifest, tmp_path, monkeypatch):
    write_manifest(manifest, tmp_path / "m.csv")
    before = (tmp_path / "m.csv").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_manifest(changed(manifest, 0, patient="X"), tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_bytes() == before
    assert len(list(tmp_path.glob("*m.*"))) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace(b"patient", b"person", 1), "missing: patient"),
        (lambda text: text.replace(b",spacing", b"", 1), "missing: spacing"),
        (lambda text: b"", "missing: id, path"),
        (lambda text: text[: text.rindex(b"\n", 0, -1) + 30], "line 17: [1-7] fields, expected 8"),
        (lambda text: text[: text.rindex(b"\n", 0, -1) + 1], "sha256 of the content is .* cut short or changed"),
        (lambda text: text.replace(b"train,1,", b"train,one,", 1), "line 3: label 'one', expected a class index"),
        (lambda text: text.replace(b"Atrain0", b"\xff\xfe", 1), "not CSV in UTF-8"),
        (lambda text: text.replace(b"Atrain0", b'"Atrain0', 1), "not CSV in UTF-8"),
    ],
)
def test_damaged_csv(manifest, tmp_path, damage, message):
    path = tmp_path / "m.csv"
    write_manifest(manifest, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ManifestError, match=rf"(?s)m\.csv.*{message}"):
        read_manifest(path, manifest.root)


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ('{"task_kind": "regression", "classes": ["a", "b"]}', "no valid task_kind"),
        ('{"task_kind": "classification", "classes": ["a"]}', r"classes are \['a'\]"),
        ('{"task_kind": "classification", "classes": ["a", "b"], "sha256": 3}', "sha256 is 3"),
    ],
)
def test_damaged_notes(manifest, tmp_path, notes, message):
    write_manifest(manifest, tmp_path / "m.csv")
    (tmp_path / "m.json").unlink()
    if notes is not None:
        (tmp_path / "m.json").write_text(notes)
    with pytest.raises(ManifestError, match=rf"m\.json: .*{message}"):
        read_manifest(tmp_path / "m.csv", manifest.root)


def test_notes_by_hand_need_no_hash(manifest, tmp_path):
    write_manifest(manifest, tmp_path / "m.csv")
    (tmp_path / "m.json").write_text(json.dumps({"task_kind": "classification", "classes": ["benign", "malignant"]}))
    assert read_manifest(tmp_path / "m.csv", manifest.root).sha256 == manifest.sha256


def test_gray_image_gets_three_equal_channels(tmp_path):
    path = write_image(tmp_path / "gray.png", mode="L")
    pixels = np.asarray(decode_image(path))
    assert pixels.shape == (8, 8, 3)
    assert (pixels == np.asarray(Image.open(path))[..., None]).all()


def test_pixel_limit_is_checked_before_decoding(tmp_path, monkeypatch):
    path = write_image(tmp_path / "large.png", size=(40, 30))
    monkeypatch.setattr(module, "PIXEL_LIMIT", 1000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"large\.png: 40x30 pixels, the limit is 1000 pixels"):
        decode_image(path)


def test_several_frames_are_refused(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (0, 90, 200)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"stack\.tif: holds 3 frames, expected one"):
        decode_image(tmp_path / "stack.tif")


@pytest.mark.parametrize("top", [1, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "LA"])
def test_mask_values(tmp_path, top, mode):
    expected = np.eye(8, dtype=np.uint8)
    values = expected * top
    if mode == "I;16":
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "mask.png")
    else:
        Image.fromarray(values).convert(mode).save(tmp_path / "mask.png")
    mask = decode_mask(tmp_path / "mask.png")
    assert mask.dtype == np.uint8 and (mask == expected).all()


def test_one_bit_and_palette_masks(tmp_path):
    expected = np.eye(8, dtype=np.uint8)
    Image.fromarray(expected * 255).convert("1").save(tmp_path / "bits.png")
    assert (decode_mask(tmp_path / "bits.png") == expected).all()
    palette = Image.fromarray(expected).copy()
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.png")
    assert (decode_mask(tmp_path / "palette.png") == expected).all()


def test_colored_mask_is_refused(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2, 2] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=r"mask\.png: mask is coloured \(mode RGB\)"):
        decode_mask(tmp_path / "mask.png")


def test_inspections_come_in_order_whatever_their_number(tmp_path):
    names = [write_image(tmp_path / f"{seed}.png", seed=seed).name for seed in range(3)]
    hashes = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
    paths = [names[number * number % 3] for number in range(600)]
    assert [found.sha256 for found in inspect_files(tmp_path, paths, [None] * 600)] == [hashes[path] for path in paths]
    assert inspect_files(tmp_path, [], []) == []


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("center", "all", "own word"),
        ("patient", "bTRAIN0", "2 spellings"),
        ("patient", "=1+1", "a formula"),
        ("center", "b", "2 spellings"),
    ],
)
def test_names_are_checked_when_made_and_when_read_back(manifest, tmp_path, column, value, words):
    table = manifest.table.copy()
    table.loc[table["patient"] == "Atrain0", column] = value
    changed = replace(manifest, table=table)
    with pytest.raises(ManifestError, match=words):
        check_manifest(changed, files=False)
    write_manifest(changed, tmp_path / "m.csv")
    with pytest.raises(ManifestError, match=words):
        read_manifest(tmp_path / "m.csv", manifest.root)


def test_a_set_with_one_training_centre_says_that_nothing_is_federated(manifest):
    table = manifest.table.copy()
    table.loc[table["center"] == "B", "split"] = "test"
    warnings = check_manifest(replace(manifest, table=table), files=False)
    assert any("one training centre ('A'): nothing is federated" in warning for warning in warnings)
    assert not any("nothing is federated" in warning for warning in check_manifest(manifest, files=False))


def test_centres_of_nearly_one_name_are_told(manifest):
    named = manifest.table.assign(center=manifest.table["center"].map({"A": "Uniklinik Koeln", "B": "Uniklinik Köln"}))
    (warning,) = check_manifest(replace(manifest, table=named), files=False)
    assert warning == "centers 'Uniklinik Koeln' and 'Uniklinik Köln' are counted as two; if they are one, give it one name"
