"""The attack simulates what a centre does, finds what is there to be found, and is out of reach of everything that trains."""

import ast
import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.config.sections import PLAIN_EXCHANGE
from vfmgl_lib.evaluation import inversion
from vfmgl_lib.evaluation.inversion import MASK, MEAN, TRUE, Attack, View
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import DECLARED_METRICS
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.batch_norm import batch_norms, recalibrate
from vfmgl_lib.models.students import STUDENTS, build_student

LIBRARY = Path(inversion.__file__).parent.parent


def small(task):
    size = {"student__width": 4, "optimizer__batch_size": 2, "optimizer__lr": 0.05}
    return load_settings(task, "smoke", **size)


@pytest.fixture(autouse=True)
def _few_pixels(monkeypatch):
    monkeypatch.setattr(inversion, "SIDE", 32)


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_nothing_in_the_library_imports_the_attack():
    found = [path.name for path in LIBRARY.rglob("*.py") if "vfmgl_lib.evaluation.inversion" in imported(path)]
    assert found == []
    assert "vfmgl_lib.evaluation.inversion" in imported(Path(__file__)), "the search finds what is there"


@pytest.mark.parametrize("task", ["nuclei", "endometrial"])
def test_the_simulated_epoch_is_the_centres_own(phantoms, task):
    """On the true images the simulated change is what a client of FedAvg sends, and the batch statistics are those in its update."""
    settings = inversion.small_task(small(task)).model_copy(update={"batch_norm": "running"})
    manifest = phantoms[task]
    center = manifest.training_centers[0]
    data = inversion.ImageDataset(manifest, manifest.select(center, "train"), 32)
    with torch_seed(seed_sequence(0, "student")):
        student = build_student(settings.student.name, 2, 4)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    client = Client(center, settings, METHODS[settings.method].switches, copy.deepcopy(student), None, data, torch.device("cpu"))
    update = client.run_round(1, before)
    model, inputs = copy.deepcopy(student).train(), []
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    parameters = {name: before[name].clone().requires_grad_() for name, _ in model.named_parameters()}
    order = client.batches(1, "I")
    assert len(order) > 1, "momentum is tested"
    images, targets = ([torch.stack([data[row][part] for row in rows]) for rows in order] for part in ("image", "target"))
    change, seen = inversion._simulated(model, parameters, inputs, images, targets, settings)
    sent = torch.cat([(update.state[name] - before[name]).flatten() for name in parameters])
    # Rectifiers and max pooling near their corners make more of a rounding error; without momentum it would be 0.4.
    assert (change - sent).norm() < 0.02 * sent.norm()
    keep = inversion.KEPT ** len(order)
    statistics = [
        [(update.state[f"{name}.{kind}"] - keep * before[f"{name}.{kind}"]) / (1 - keep) for kind in ("running_mean", "running_var")]
        for name in layers
    ]
    assert inversion._statistics_distance(seen, statistics) < 1e-6
    assert inversion._statistics_distance(seen[:1], statistics) > 1e-4, "other batches have other statistics"


def test_the_server_reads_re_estimated_statistics_as_they_are(phantoms, monkeypatch):
    """Those in the update of one step are the moments of its images under the model sent, and the attack uses them as such."""
    seen = {}
    monkeypatch.setattr(inversion, "_statistics_distance", lambda batches, statistics: seen.update(sent=statistics) or torch.zeros(()))
    reconstruct = inversion.reconstruct
    monkeypatch.setattr(inversion, "reconstruct", lambda *given: seen.update(model=given[0], after=given[2]) or reconstruct(*given))
    table = inversion.inversion(small("nuclei"), phantoms["nuclei"], "SiteA", [View("step", images=2)], 2, Attack(iterations=1))
    images = torch.stack([torch.from_numpy(image) for image in table.loc[table["view"] == inversion.TRUE, "image"]]).permute(0, 3, 1, 2)
    model = seen["model"]
    model.load_state_dict(seen["after"])
    recalibrate(model, [images])
    for (mean, variance), layer in zip(seen["sent"], batch_norms(model).values(), strict=True):
        torch.testing.assert_close(mean, layer.running_mean)
        torch.testing.assert_close(variance, layer.running_var)


def test_the_attack_comes_closer_to_the_seen_change(phantoms, monkeypatch):
    """Dummy images that have been optimised change the model more in the seen direction than those of the start, unless there is noise."""
    cosines: list[float] = []
    similarity = torch.nn.functional.cosine_similarity

    def recorded(*arguments, **options):
        value = similarity(*arguments, **options)
        cosines.append(float(value.detach()))
        return value

    monkeypatch.setattr(inversion.F, "cosine_similarity", recorded)
    best = {}
    for name, noise in {"plain": 0.0, "noise": 1.0}.items():
        cosines.clear()
        view = View(name, noise=noise)
        table = inversion.inversion(small("nuclei"), phantoms["nuclei"], "SiteA", [view], 1, Attack(iterations=25, lr=0.05)).set_index(
            "view"
        )
        assert len(cosines) == 25
        best[name] = max(cosines) - cosines[0]
        assert table.loc[name, "cpu_seconds"] > 0
        assert table.loc[name, "epsilon"] == (pytest.approx(11.597, abs=1e-3) if noise else math.inf)
    assert best["plain"] > 0.05 > best["noise"]


def test_the_table_has_every_view_of_the_same_images(phantoms):
    views = [View("two", images=2), View("epoch", images=0, number_format="float16_change")]
    table = inversion.inversion(small("nuclei"), phantoms["nuclei"], "SiteA", views, 3, Attack(iterations=2))
    assert list(dict.fromkeys(table["view"])) == [TRUE, MEAN, MASK, "two", "epoch"]
    assert (table.groupby("view", sort=False)["id"].agg(list).map(tuple).nunique()) == 1
    assert all(image.shape == (32, 32, 3) and 0 <= image.min() and image.max() <= 1 for image in table["image"])
    by_view = table.set_index("view")
    assert np.isinf(by_view.loc[TRUE, "psnr"]).all() and np.allclose(by_view.loc[TRUE, "ssim"], 1)
    image, mean = by_view.loc[TRUE, "image"].iloc[0], by_view.loc[MEAN, "image"].iloc[0]
    assert by_view.loc[MEAN, "psnr"].iloc[0] == pytest.approx(-10 * math.log10(((image - mean) ** 2).mean()), abs=1e-3)
    for mask in by_view.loc[MASK, "image"]:
        assert len(np.unique(mask.reshape(-1, 3), axis=0)) == 2


def test_a_classification_has_no_mask_and_is_attacked_alike(phantoms):
    manifest = phantoms["endometrial"]
    center = manifest.training_centers[0]
    table = inversion.inversion(small("endometrial"), manifest, center, [View("epoch", images=0)], 1, Attack(iterations=2))
    assert list(table["view"]) == [TRUE, MEAN, "epoch"]


def test_a_single_image_suffices_for_a_classification(phantoms, monkeypatch):
    monkeypatch.undo()
    manifest = phantoms["endometrial"]
    table = inversion.inversion(small("endometrial"), manifest, manifest.training_centers[0], [View("one")], 1, Attack(iterations=1))
    assert table["image"].iloc[-1].shape == (64, 64, 3)


def test_what_is_attacked_is_small_and_unprotected(monkeypatch):
    monkeypatch.undo()
    task = inversion.small_task(load_settings("prostate", "paper", exchange__number_format="float16"))
    assert (task.method, task.data.image_size, task.student.width, task.optimizer.batch_size) == ("fedavg", 64, 16, 3)
    assert task.exchange.number_format == "float32" and task.data.augmentation == "none"


@pytest.mark.parametrize("name", ["unet", "resnet18"])
def test_every_value_of_an_update_is_counted_once(name):
    student = STUDENTS[name](2, 4)
    state, norms = student.state_dict(), [m for m in student.modules() if type(m).__name__.startswith("BatchNorm")]
    plain = inversion.update_contents(state, PLAIN_EXCHANGE).set_index("kind")
    channels = sum(norm.num_features for norm in norms)
    assert plain.loc["batch norm: scale and shift", "values"] == plain.loc["batch norm: mean and variance", "values"] == 2 * channels
    assert plain.loc["batch norm: counters", "values"] == len(norms)
    assert plain.loc["weights and biases", "values"] == sum(p.numel() for p in student.parameters()) - 2 * channels
    assert plain["tensors"].sum() == len(state)
    assert plain["bytes"].sum() == sum(tensor.nbytes for tensor in state.values())
    assert plain.loc["number of samples", "values"] == 1 and plain["values"].iloc[-1] == len(DECLARED_METRICS)
    short = {"number_format": "float16", "share_counts": False}
    halved = inversion.update_contents(state, PLAIN_EXCHANGE.model_copy(update=short)).set_index("kind")
    assert (halved["values"].iloc[-2:] == 0).all()
    assert 2 * halved.loc["weights and biases", "bytes"] == plain.loc["weights and biases", "bytes"]
    assert halved.loc["batch norm: counters", "bytes"] == plain.loc["batch norm: counters", "bytes"]
