"""A small federation of phantom centres."""

import pytest
import torch

from vfmgl_lib.config import load_settings
from vfmgl_lib.data.layouts import read_layout
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.phantoms import write_phantoms
from vfmgl_lib.federation.client import Client
from vfmgl_lib.models.students import STUDENTS
from vfmgl_lib.models.teachers import load_teacher
from vfmgl_lib.randomness import seed_sequence, torch_seed

SAMPLES = {"nuclei": {"train": 4, "val": 2, "test": 2}, "endometrial": {"train": 6, "test": 4}}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """task -> manifest of two small centres."""
    root = tmp_path_factory.mktemp("phantoms")
    folders = {
        task: write_phantoms(root / task, task, centers=2, samples=samples, image_size=32, seed=5) for task, samples in SAMPLES.items()
    }
    return {task: read_layout(folder, task, progress=False) for task, folder in folders.items()}


@pytest.fixture(scope="session")
def teacher():
    return load_teacher("random:vit_tiny_patch16_224", grid=2, blocks=(1, 2))


@pytest.fixture
def federation(phantoms, teacher):
    """(task, method, **settings) -> (clients, shared student)."""

    def build(task="nuclei", method="vfmgl", **overrides):
        size = {"data__image_size": 32, "student__width": 4, "student__weights": "none", "data__workers": 0}
        overrides = {"optimizer__batch_size": 2, "optimizer__lr": 0.05, "transfer__critical_stages": 2} | size | overrides
        settings = load_settings(task, "paper", method=method, **overrides)
        manifest = phantoms[task]

        def student():
            with torch_seed(seed_sequence(0, "student")):
                return STUDENTS[settings.student.name](2, settings.student.width)

        data = {center: ImageDataset(manifest, manifest.select(center, "train"), 32, 32) for center in manifest.training_centers}
        clients = [Client(center, settings, student(), teacher, part, torch.device("cpu")) for center, part in data.items()]
        return clients, student()

    return build
