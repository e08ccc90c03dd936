"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data_root() -> Path:
    """Folder of the real sets (idc_patches, nuclei, …): VFMGL_DATA, or ../shared/data beside the project's root."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("VFMGL_DATA") or default)
    if not root.is_dir():
        pytest.skip(f"no real data in {root}: set VFMGL_DATA to the folder that holds idc_patches and nuclei")
    return root
