"""Small mutations of every kind of input end with success or an error that names the file: no traceback, no hang, no flood of memory.

The seed is fixed: by default the same mutations come again at every run, as many as a minute allows. VFMGL_FUZZ=20 takes twenty times as
many, new ones after those: the long search, before a release and after a change of a reader.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SEED, TIMES = 1, int(os.environ.get("VFMGL_FUZZ") or 1)
# Formats whose mutations cost alike, and how many of each; a group is a process.
GROUPS = [
    (("png", "tiff", "jpeg", "mask", "nifti"), 65),
    (("nifti.gz", "csv", "xml", "safetensors", "onnx"), 65),
    (("mhd", "dicom"), 40),
]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("formats", "count"), GROUPS, ids=["+".join(formats) for formats, _ in GROUPS])
def test_mutations_of_valid_inputs_end_in_words(formats, count, tmp_path):
    """In a process apart from this one: its peak of memory is its own, and start-up is paid once."""
    call = [sys.executable, str(ROOT / "tests" / "fuzzed.py"), str(tmp_path), str(SEED), str(count * TIMES), *formats]
    ran = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    faults = [f"{name}: {fault['what']} {fault.get('kept', '')}" for name, one in found.items() for fault in one["faults"]]
    assert not faults, "\n".join(faults)
    for name, one in found.items():
        assert one["valid"] == 0 and one["mutations"] == count * TIMES and one["refused"] > 10, f"{name}: {one}"


SCRIPT = """
import sys, time
from tests import fuzzed
fuzzed.START, fuzzed.MEMORY = fuzzed._peak(), 2**27
def raises(): raise KeyError("x")
def prints(): sys.stderr.write("Traceback (most recent call last):\\n"); return 1
def hangs(): time.sleep(9)
def swallows(): block = bytearray(b"x") * (700 * 2**20); return 0
for call, fuzzed.SECONDS in ((raises, 60), (prints, 60), (hangs, 1), (swallows, 60)):
    sys.stdout.write(fuzzed.run(call)[2].split(":")[0] + "\\n")
sys.stdout.write(str(fuzzed.run(lambda: 0)))
"""


def test_a_fault_is_seen():
    """The harness itself: what raises, prints a traceback, hangs or takes too much memory is a fault."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert lines[:3] == ["KeyError", "a traceback", "more than 1 s"] and "MiB more memory" in lines[3] and lines[4] == "(0, '', '')"
