"""The pocket teacher's training: centres beyond the studies', seeds that are none of theirs, resumable to the bit, weights that load."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vfmgl_lib.config import ConfigError
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.teachers import load_teacher
from vfmgl_lib.tasks.painting.sampling import scattered
from vfmgl_lib.tasks.phantoms import generator_of
from vfmgl_lib.tasks.records import TASKS
from vfmgl_lib.tools.pretrain import training
from vfmgl_lib.tools.pretrain.__main__ import main
from vfmgl_lib.tools.pretrain.formulas import Painter
from vfmgl_lib.tools.pretrain.parsing import Parsing
from vfmgl_lib.tools.pretrain.phantom_bank import FIRST_SEED, LAYOUTS, NO_LABEL, phantom_bank
from vfmgl_lib.tools.pretrain.training import Schedule, new_trunk, next_batch, pretrain

TINY = Schedule(steps=6, scenes=4, phantoms=4, bank=4, warmup=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bank_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("bank") / training.BANK
    phantom_bank(file, TINY.bank, 128, processes=1)
    return file


@pytest.fixture
def folder(bank_file, tmp_path):
    """Of a run, with its phantoms drawn."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / training.BANK).write_bytes(bank_file.read_bytes())
    return tmp_path / "run"


def test_a_bank_has_every_layout_with_its_structure(bank_file):
    bank = phantom_bank(bank_file, TINY.bank, 128, processes=1)
    assert bank["image"].shape == (4 * len(LAYOUTS), 3, 128, 128) and bank["image"].dtype == np.uint8
    for number, name in enumerate(LAYOUTS):
        rows = bank["layout"] == number
        assert rows.sum() == 4 and 0 < bank["mask"][rows].mean() < 0.9
        assert set(bank["label"][rows]) == ({0, 1} if name in ("endometrial", "camelyon17") else {NO_LABEL})
        assert len({image.tobytes() for image in bank["image"][rows]}) == 4, "no two are alike"


def test_a_bank_of_other_phantoms_is_refused(bank_file):
    with pytest.raises(ValueError, match=r"phantoms.safetensors: holds phantoms of .* expected .*'count': '5'"):
        phantom_bank(bank_file, 5, 128, processes=1)


@pytest.mark.parametrize("layout", list(TASKS))
def test_random_centres_go_beyond_the_studies(layout):
    generator = generator_of(layout)
    drawn = [scattered(generator.COMMON, generator.CENTERS, np.random.default_rng(seed)) for seed in range(200)]
    for name in ("noise", "blur"):
        known = [getattr(profile, name) for profile in (generator.COMMON, *generator.CENTERS)]
        values = [getattr(profile, name) for profile in drawn]
        width = max(known) - min(known)
        assert min(values) < min(known) and max(values) > max(known)
        assert min(values) >= min(known) - width / 2 and max(values) <= max(known) + width / 2
    with pytest.raises(ConfigError, match="seed"):
        load_settings(layout, seed=FIRST_SEED)


def test_one_that_was_interrupted_ends_with_the_same_bits(folder, tmp_path, monkeypatch):
    whole = pretrain(folder, TINY, CPU, processes=1)
    other = tmp_path / "other"
    other.mkdir()
    (other / training.BANK).write_bytes((folder / training.BANK).read_bytes())
    draw, drawn = Painter.draw, []

    def interrupted(self, count, seed):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(seed)
        return draw(self, count, seed)

    monkeypatch.setattr(Painter, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(other, TINY, CPU, processes=1, save_every=0)
    assert [path.name for path in other.glob("checkpoint-*")] == ["checkpoint-5"]
    resumed = []
    monkeypatch.setattr(Painter, "draw", lambda self, count, seed: (resumed.append(seed), draw(self, count, seed))[1])
    again = pretrain(other, TINY, CPU, processes=1, save_every=0)
    assert len(resumed) == 1 and resumed[0] not in drawn
    assert again.read_bytes() == whole.read_bytes()
    assert again.with_suffix(".sha256").read_text() == whole.with_suffix(".sha256").read_text()
    monkeypatch.setattr(Painter, "draw", None)
    assert pretrain(other, TINY, CPU) == again, "finished: nothing is drawn again"


def test_the_weights_load_as_a_teacher_of_any_grid(folder):
    file = pretrain(folder, Schedule(**{**vars(TINY), "steps": 1}), CPU, processes=1)
    assert all(tensor.dtype == torch.float16 for tensor in load_file(file).values())
    for grid in (4, 8):
        (stack,) = load_teacher(str(file), grid=grid)(torch.rand(2, 3, 16 * grid, 16 * grid))
        assert stack.shape == (2, 4, 160, grid, grid) and stack.isfinite().all()


def test_other_settings_and_a_damaged_checkpoint_are_named(folder, capsys):
    pretrain(folder, Schedule(**{**vars(TINY), "steps": 1}), CPU, processes=1, save_every=0)
    words = ["--out", str(folder), "--scenes", "4", "--phantoms", "4", "--bank", "4", "--warmup", "2", "--processes", "1"]
    assert main([*words, "--steps", "2"]) == 1
    assert "steps 1 instead of 2" in capsys.readouterr().err
    (folder / training.WEIGHTS).unlink()
    checkpoint = next(folder.glob("checkpoint-*"))
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    assert main([*words, "--steps", "1"]) == 1
    assert "remove it to begin anew" in capsys.readouterr().err


def test_the_loss_sees_every_answer(bank_file):
    """Every head, and with it the trunk, gets a gradient."""
    bank = {name: torch.from_numpy(array) for name, array in phantom_bank(bank_file, TINY.bank, 128, processes=1).items()}
    model = Parsing(new_trunk())
    batch = next_batch(Painter(128, CPU), bank, Schedule(scenes=8, phantoms=8), 1, torch.Generator().manual_seed(1))
    model(batch, 64).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_shipped_weights_know_nuclei():
    """How much of a patch nuclei cover is a linear function of its token, on tiles of the studies' own centres."""
    generator = generator_of("nuclei")
    planned = generator.plan(2, {"train": 6, "test": 6}, 1.0, 0)
    features = {"train": [], "test": []}
    teacher = load_teacher("pocket_vit", grid=8)
    for sample in planned:
        image, mask = generator.render(sample, 128, 1.0, 0)
        (stack,) = teacher(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        share = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float() / 255, 8).flatten()
        features[sample.split].append((stack[0, -1].flatten(1).T, share))
    x, y = (torch.cat(part) for part in zip(*features["train"], strict=True))
    x_test, y_test = (torch.cat(part) for part in zip(*features["test"], strict=True))
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    weights = torch.linalg.solve(design.T @ design + 10 * torch.eye(161), design.T @ y)
    predicted = torch.cat([x_test, torch.ones(len(x_test), 1)], 1) @ weights
    assert torch.corrcoef(torch.stack([predicted, y_test]))[0, 1] > 0.8


@pytest.mark.parametrize("words", [["--steps", "0"], ["--bank", "0"], ["--warmup", "0"], ["--lr", "0"], ["--seed", "-1"]])
def test_what_cannot_be_is_named(words, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "run"), *words]) == 1
    assert f"{words[0][2:]} " in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_no_process_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "run"), "--processes", "0"])
    assert "--processes must be at least 1, got 0" in capsys.readouterr().err
