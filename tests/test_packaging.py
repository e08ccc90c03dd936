"""The files that name versions agree: one pin, wherever it is written."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vfmgl_lib import __version__

ROOT = Path(__file__).parent.parent


def pins(lines: list[str]) -> dict[str, str]:
    return dict(line.split("==") for line in lines if re.fullmatch(r"[a-z0-9-]+==[\w.]+", line))


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DIRECT = {re.split(r"[=<>]", text)[0] for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]}
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
BUILD = {"cython", "hatchling", "setuptools", "wheel"}


def test_every_direct_dependency_is_pinned():
    assert CONSTRAINTS.keys() >= DIRECT | BUILD
    assert CONSTRAINTS["pymrmr"] == "0.1.11" and PROJECT["optional-dependencies"]["mrmr"] == ["pymrmr==0.1.11"]
    assert "pymrmr" not in DIRECT, "an extra alone: it needs a compiler, and its licence is academic"
    assert "--no-build-isolation pymrmr\n" in (ROOT / "run_all.sh").read_text(), "which run_all.sh installs all the same"


def test_every_dependency_has_a_floor_that_the_pins_reach():
    """The floors were tested once; CONTRIBUTING.md says how."""
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert {one.operator for one in requirement.specifier} in ({">="}, {"=="}), text
        assert requirement.specifier.contains(CONSTRAINTS[requirement.name]), text


def test_every_pin_allows_the_oldest_python_that_is_promised():
    """Debian 12 has 3.11.2: a pin that wanted 3.11.5 ended the installation there."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    asks = {one.metadata["Name"].lower(): one.metadata["Requires-Python"] for one in distributions()}
    installed = {name: asks[name] for name in CONSTRAINTS if name in asks}
    assert len(installed) > 100
    assert [name for name, python in installed.items() if not SpecifierSet(python or "").contains(oldest)] == []


def test_the_site_s_packages_are_pinned():
    assert CONSTRAINTS.keys() >= set(PROJECT["optional-dependencies"]["docs"])


def test_conda_has_the_same_pins():
    packages = next(entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))
    conda = pins(packages)
    assert conda.keys() == DIRECT | BUILD
    assert conda.items() <= CONSTRAINTS.items()
    assert [line for line in packages if line not in {f"{k}=={v}" for k, v in conda.items()}] == ["--constraint constraints.txt"]


def test_hooks_use_the_same_versions():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    used = pins([line for hook in hooks for line in hook.get("additional_dependencies", ())])
    used.pop("pre-commit-hooks")
    assert used == {name: CONSTRAINTS[name] for name in ("ruff", "nbstripout")}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    code = "import sys; from hatchling import build; build.build_wheel(sys.argv[1]); build.build_sdist(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {"wheel": next(folder.glob("*.whl")), "sdist": next(folder.glob("*.tar.gz"))}


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(built["wheel"]).extractall(folder)
    return folder


def files_of(folder: Path) -> set[str]:
    kept = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"}
    return {name.as_posix() for name in kept if not any(part.startswith(".") for part in name.parts)}


def test_the_wheel_has_the_library_and_what_lies_beside_it_once(built, unpacked):
    wanted = {f"vfmgl_lib/{name}" for name in files_of(ROOT / "vfmgl_lib")} - {"vfmgl_lib/tools/kernel.json"}  # which goes to share/
    wanted |= {f"vfmgl_lib/workbook/{folder}/{name}" for folder in ("notebooks", "data_manifests") for name in files_of(ROOT / folder)}
    found = {name for name in files_of(unpacked) if not name.startswith("vfmgl_workbook-")}
    assert found == wanted and {"vfmgl_lib/models/pocket_vit.safetensors", "vfmgl_lib/workbook/notebooks/profiles/paper.yaml"} <= found
    assert built["wheel"].name == f"vfmgl_workbook-{__version__}-py3-none-any.whl"
    assert built["wheel"].stat().st_size <= 8 * 2**20 and built["sdist"].stat().st_size <= 12 * 2**20


def test_the_package_runs_without_the_clone(unpacked, tmp_path):
    """All that the library reads is in it; `vfmgl init` makes the folder to work in."""
    code = (
        "import sys; from pathlib import Path; from vfmgl_lib import cli\n"
        "from vfmgl_lib.base import places\n"
        "from vfmgl_lib.evaluation.saved_runs import read_paper\n"
        "from vfmgl_lib.methods.settings import load_settings\n"
        "from vfmgl_lib.models.teacher_names import POCKET_FILE\n"
        "from vfmgl_lib.tasks.datasheets import read_datasheet\n"
        "from vfmgl_lib.tasks.records import TASKS\n"
        "assert not places.IS_CLONE and str(places.LIBRARY).startswith(sys.argv[1])\n"
        "assert len(TASKS) == 4 and POCKET_FILE.is_file() and len(read_paper()) > 50\n"
        "for task in TASKS: load_settings(task, 'paper'); read_datasheet(task)\n"
        "assert cli.main(['init', 'mine']) == 0 and cli.main(['--version']) == 0\n"
        "assert (Path('mine') / 'notebooks' / '02_hgkt.ipynb').is_file()\n"
        "assert cli.main(['run']) == 2\n"
    )
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run([sys.executable, "-c", code, unpacked], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "is no folder of a workbook" in done.stderr and f"vfmgl {__version__}\n" in done.stdout


def test_jupyter_finds_the_notebooks_kernel(built):
    wheel = zipfile.ZipFile(built["wheel"])
    (spec,) = [name for name in wheel.namelist() if name.endswith("data/share/jupyter/kernels/vfmgl/kernel.json")]
    assert json.loads(wheel.read(spec))["argv"][:3] == ["python", "-m", "ipykernel_launcher"], "jupyter_client takes its own Python for it"
    notebooks = [json.loads(file.read_text("utf-8")) for file in (ROOT / "notebooks").rglob("*.ipynb") if "checkpoints" not in str(file)]
    assert {notebook["metadata"]["kernelspec"]["name"] for notebook in notebooks} == {"vfmgl"}


def test_versions_agree():
    """It stands in one place; the page of changes names it."""
    assert PROJECT["dynamic"] == ["version"] and PYPROJECT["tool"]["hatch"]["version"]["path"] == "vfmgl_lib/__init__.py"
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line.startswith("## "))
    assert newest.startswith(f"## {__version__} (")


def test_help_needs_no_environment(tmp_path: Path):
    """--help works in a copy that has nothing but the script, and makes nothing."""
    script = tmp_path / "run_all.sh"
    script.write_bytes((ROOT / "run_all.sh").read_bytes())
    done = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, cwd=tmp_path, check=True)
    for word in ("test", "lab", "--profile", "--task", "--data", "--teacher", "--device", "--seed", "--only"):
        assert word in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run_all.sh"]


def test_unknown_command_is_named(tmp_path: Path):
    script = tmp_path / "run_all.sh"
    script.write_bytes((ROOT / "run_all.sh").read_bytes())
    done = subprocess.run(["bash", script, "tests"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "unknown command 'tests'" in done.stderr


def test_old_python_is_refused(tmp_path: Path):
    script = tmp_path / "run_all.sh"
    script.write_bytes((ROOT / "run_all.sh").read_bytes())
    (tmp_path / "environment.yml").write_text("name: vfmgl\n")
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(old)}
    done = subprocess.run(["bash", script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert f"PYTHON={old} is not a Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_pages_name_files_that_are_there(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    named += re.findall(r"`((?:vfmgl_lib|tests|notebooks|docs|deploy|results|data_manifests)/[\w./-]*)`", text)
    # Inside the library's rooms CONTRIBUTING and SECURITY leave its name out.
    named += [
        f"vfmgl_lib/{name}" for name in re.findall(r"`((?:[a-z_]+/)+[\w]+\.py)`", text) if not name.startswith(("vfmgl_lib", "tests"))
    ]
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).exists()] == []
