"""The smallest workspace that studies can be run in."""

from pathlib import Path

import pandas as pd
import pytest

from vfmgl_lib.study.workspace import open_workspace

SMALLEST = Path(__file__).parents[2] / "smallest.yaml"


@pytest.fixture
def small(tmp_path):
    """Settings -> a nuclei workspace below tmp_path/<runs>."""

    def workspace(runs="runs", **settings):
        return open_workspace("nuclei", SMALLEST, runs=tmp_path / runs, **({"federation__match_updates": False} | settings))

    return workspace


@pytest.fixture
def content():
    """Study folder -> everything in it but wall-clock times and the log of starts."""

    def read(folder):
        found = {}
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.suffix == ".csv":
                found[name] = pd.read_csv(file, dtype=str, keep_default_na=False).drop(columns="seconds", errors="ignore").to_csv()
            elif file.is_file() and file.name not in ("environment.json", ".lock"):
                found[name] = file.read_bytes()
        return found

    return read
