"""With `batch_norm: running` a study ends with the very bits of version 0.1.0, which is taken from the repository's history."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OLD = "55a9b0d"  # 0.1.0
METHODS = {
    "nuclei": ("local", "fedavg", "fedprox", "harmofl", "metafed", "frozen_probe", "logit_kd", "hgkt", "hgkt_kd", "vfmgl"),
    "endometrial": ("fedavg", "metafed", "vfmgl"),
}
SMALL = {"federation__rounds": 2, "data__image_size": 32, "student__width": 4, "optimizer__batch_size": 3, "teacher__grid": 2}
# Runs in either version: studies of the old version's smoke values on one set of images.
SCRIPT = """
import json, os, sys
try:
    from vfmgl_lib.tasks.phantoms import write_phantoms
    from vfmgl_lib.study.workspace import open_workspace
except ImportError:  # 0.1.0
    from vfmgl_lib.data.phantoms import write_phantoms
    from vfmgl_lib.workspace import open_workspace

task, profile, data, runs, methods, overrides = json.loads(sys.argv[1])
samples = {"train": 6, "val": 3, "test": 3} if task == "nuclei" else {"train": 9, "test": 4}
if not os.path.isdir(data):  # the old version's, which comes first
    write_phantoms(data, task, centers=2, samples=samples, image_size=32, seed=1)
workspace = open_workspace(task, profile, data=data, runs=runs, **overrides)
print(json.dumps({method: str(workspace.run(method, progress=False).folder) for method in methods}))
"""


@pytest.fixture(scope="module")
def old_version(tmp_path_factory):
    """The files of 0.1.0."""
    folder = tmp_path_factory.mktemp("old")
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", OLD], capture_output=True)
    if archive.returncode:
        pytest.skip(f"no history here to take 0.1.0 from: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


@pytest.fixture(scope="module")
def before(old_version, tmp_path_factory):
    """(task) -> the folder of its data and studies, and the studies of 0.1.0; made once."""
    made = {}

    def of(task):
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            made[task] = folder, _studies(old_version, task, old_version, folder, **SMALL)
        return made[task]

    return of


def _studies(library, task, old, tmp_path, **overrides):
    runs = tmp_path / f"runs-{overrides.get('batch_norm', 'old')}"
    order = [task, str(old / "notebooks/profiles/smoke.yaml"), str(tmp_path / "data"), str(runs)]
    environment = os.environ | {"PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", SCRIPT, json.dumps([*order, METHODS[task], overrides])]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {method: Path(folder) for method, folder in json.loads(done.stdout.splitlines()[-1]).items()}


def _models(study):
    """Round and name -> hash, of every student kept."""
    files = sorted(study.glob("rounds/*/*.student.safetensors")) + sorted(study.glob("rounds/*/shared.safetensors"))
    return {f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("task", METHODS)
def test_running_statistics_give_the_bits_of_0_1_0(old_version, before, task):
    folder, old = before(task)
    now = _studies(ROOT, task, old_version, folder, **SMALL, batch_norm="running")
    for method in METHODS[task]:
        was = _models(old[method])
        assert was
        assert _models(now[method]).items() >= was.items(), method


def test_re_estimated_statistics_do_not(old_version, before):
    """So that the test above can fail."""
    folder, old = before("endometrial")
    now = _studies(ROOT, "endometrial", old_version, folder, **SMALL, batch_norm="recalibrated")
    assert all(_models(old[method]) != _models(now[method]) for method in METHODS["endometrial"])
