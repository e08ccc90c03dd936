"""What an import does not bring: packages that take seconds and hundreds of megabytes are imported in the functions that need them."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NUMERIC = ("torch._dynamo", "torchvision", "timm", "sklearn", "scipy.stats", "statsmodels", "cv2", "monai", "skimage.metrics", "pymrmr")
IMAGES = ("SimpleITK", "nibabel", "pydicom", "scipy.ndimage", "skimage.color", "skimage.filters")
PAGES = ("matplotlib", "seaborn", "IPython", "ipywidgets", "papermill", "nbconvert", "jupyter_client")
SERVICES = ("flwr", "onnx", "onnxruntime", "requests", "pooch", "submitit")
HEAVY = (*NUMERIC, *IMAGES, *PAGES, *SERVICES)
NOTEBOOKS = [path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")) if path.stem != "08_lightweight"]


def brought(code: str, watched: tuple[str, ...]) -> set[str]:
    """Which of the packages are imported after the code has run in a process of its own."""
    code = f"{code}\nimport sys\nprint(*[name for name in {watched!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("vfmgl_lib.study.workspace", {"torch"}),
        ("vfmgl_lib.cli", set()),
        ("vfmgl_lib.tools.predict.__main__", {"onnxruntime"}),
        ("vfmgl_lib.tools.batch.__main__", set()),
        ("vfmgl_lib.tools.sweep.__main__", {"torch", "submitit"}),
        ("vfmgl_lib.tools.data.__main__", {"requests", "pooch"}),
    ],
)
def test_a_module_brings_what_it_needs(module: str, allowed: set[str]):
    assert brought(f"import {module}", (*HEAVY, "torch")) <= allowed


def test_help_of_the_command_needs_no_table_and_no_array():
    assert not brought("from vfmgl_lib.cli import main\nassert main(['--help']) == 0", (*HEAVY, "torch", "numpy", "pandas"))


def test_notebooks_import_what_they_use():
    """All but 08, which measures timm's networks and exports: the numbers' packages come with the first call that needs them."""
    lines = []
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, nbformat.NO_CONVERT).cells:
            if cell.cell_type == "code":
                code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
                lines += [ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(lines) > 50
    allowed = {"matplotlib", "IPython", "ipywidgets", "submitit"}
    assert brought("\n".join(dict.fromkeys(lines)), HEAVY) <= allowed
