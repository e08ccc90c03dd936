"""Fixtures for all tests: where the real data lie, and a small federation of phantom centres."""

import os
from pathlib import Path

import pytest
import torch

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.data.divisions import with_validation
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.methods.pooled import pool_data
from vfmgl_lib.methods.registry import METHODS, new_server
from vfmgl_lib.methods.settings import load_settings, with_overrides
from vfmgl_lib.models.students import build_student
from vfmgl_lib.models.teachers import load_teacher
from vfmgl_lib.tasks.folders import read_folders
from vfmgl_lib.tasks.phantoms import write_phantoms

SAMPLES = {"nuclei": {"train": 4, "val": 2, "test": 2}, "endometrial": {"train": 6, "test": 4}}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """task -> manifest of two small centres."""
    root = tmp_path_factory.mktemp("phantoms")
    folders = {
        task: write_phantoms(root / task, task, centers=2, samples=samples, image_size=32, seed=5) for task, samples in SAMPLES.items()
    }
    return {task: read_folders(folder, task, progress=False) for task, folder in folders.items()}


@pytest.fixture(scope="session")
def teacher():
    return load_teacher("random:vit_tiny_patch16_224", grid=2, blocks=(1, 2))


@pytest.fixture
def federation(phantoms, teacher):
    """(task, method, **settings) -> (clients, server)."""

    def build(task="nuclei", method="vfmgl", **overrides):
        size = {"data__image_size": 32, "student__width": 4, "student__weights": "none", "data__workers": 0}
        overrides = {"optimizer__batch_size": 2, "optimizer__lr": 0.05, "transfer__critical_stages": 2} | size | overrides
        settings = with_overrides(load_settings(task, "paper", method=method, **overrides))
        manifest = phantoms[task]
        if METHODS[method].needs_validation:
            manifest = with_validation(manifest, 0.2, 0)

        def student():
            with torch_seed(seed_sequence(0, "student")):
                return build_student(settings.student.name, 2, settings.student.width, batch_statistics=settings.batch_norm == "batch")

        def data(center, split):
            table = manifest.select(center, split)
            return ImageDataset(manifest, table, 32, 32) if len(table) else None

        chosen = METHODS[method]
        given = teacher if chosen.switches.teacher else None
        clients = [
            chosen.client(
                center,
                settings,
                chosen.switches,
                student(),
                given,
                data(center, "train"),
                torch.device("cpu"),
                validation=data(center, "val"),
            )
            for center in manifest.training_centers
        ]
        pool_data(clients)
        return clients, new_server(settings, list(manifest.training_centers), student())

    return build


@pytest.fixture
def received(monkeypatch):
    """server -> the list that the updates which it takes are added to."""

    def record(server):
        updates, receive = [], server.receive

        def recording(update):
            receive(update)
            updates.append(update)

        monkeypatch.setattr(server, "receive", recording)
        return updates

    return record


@pytest.fixture(scope="session")
def real_data_root() -> Path:
    """Folder of the real sets (idc_patches, nuclei, …): VFMGL_DATA, or ../shared/data beside the project's root."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("VFMGL_DATA") or default)
    if not root.is_dir():
        pytest.skip(f"no real data in {root}: set VFMGL_DATA to the folder that holds idc_patches and nuclei")
    return root
