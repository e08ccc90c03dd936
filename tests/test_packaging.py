"""The files that name versions agree: one pin, wherever it is written."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from vfmgl_lib import __version__

ROOT = Path(__file__).parent.parent


def pins(lines: list[str]) -> dict[str, str]:
    return dict(line.split("==") for line in lines if re.fullmatch(r"[a-z0-9-]+==[\w.]+", line))


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DIRECT = {re.split(r"[=<>]", text)[0] for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]}
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
NOT_IN_CONDA = {"pymrmr"}  # needs --no-build-isolation, so run_all.sh installs it
BUILD = {"cython", "setuptools", "wheel"}


def test_every_direct_dependency_is_pinned():
    assert CONSTRAINTS.keys() >= DIRECT | BUILD
    assert CONSTRAINTS["pymrmr"] == "0.1.11"
    assert "pymrmr==0.1.11" in PROJECT["dependencies"]


def test_the_site_s_packages_are_pinned():
    assert CONSTRAINTS.keys() >= set(PROJECT["optional-dependencies"]["docs"])


def test_conda_has_the_same_pins():
    packages = next(entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))
    conda = pins(packages)
    assert conda.keys() == (DIRECT | BUILD) - NOT_IN_CONDA
    assert conda.items() <= CONSTRAINTS.items()
    assert [line for line in packages if line not in {f"{k}=={v}" for k, v in conda.items()}] == ["--constraint constraints.txt"]


def test_hooks_use_the_same_versions():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    used = pins([line for hook in hooks for line in hook.get("additional_dependencies", ())])
    used.pop("pre-commit-hooks")
    assert used == {name: CONSTRAINTS[name] for name in ("ruff", "nbstripout")}


def test_an_installed_package_has_every_file_that_the_library_reads():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["vfmgl_lib"]
    library = ROOT / "vfmgl_lib"
    others = {file for file in library.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    packed = {file for pattern in patterns for file in library.glob(pattern)}
    assert len(others) >= 9 and packed == others


def test_versions_agree():
    assert PROJECT["version"] == __version__
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line.startswith("## "))
    assert newest.startswith(f"## {re.sub(r'[.]dev[0-9]+$', '', __version__)} (")


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
