"""Small mutations of every kind of input end with success or with an error that names the file: no traceback, no hang, no flood of memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SEED, COUNT = 1, 170
FORMATS = ("png", "tiff", "jpeg", "mask", "nifti", "nifti.gz", "mhd", "dicom", "csv", "xml", "safetensors", "onnx")


@pytest.mark.timeout(600)
def test_mutations_of_valid_inputs_end_in_words(tmp_path):
    """In one process, apart from this one: its peak of memory is its own."""
    call = [sys.executable, str(ROOT / "tests" / "fuzzed.py"), str(tmp_path), str(SEED), str(COUNT)]
    ran = subprocess.run(call, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    faults = [f"{name}: {fault['what']} {fault.get('kept', '')}" for name, one in found.items() for fault in one["faults"]]
    assert not faults, "\n".join(faults)
    assert set(found) == set(FORMATS) and sum(one["mutations"] for one in found.values()) >= 2000
    for name, one in found.items():
        assert one["valid"] == 0 and one["refused"] > 10, f"{name}: {one}"


def test_a_fault_is_seen(tmp_path):
    """The harness itself: what raises, hangs, or prints a traceback is a fault."""
    script = """
import sys, time
from tests import fuzzed
fuzzed.START, fuzzed.SECONDS = fuzzed._peak(), 1
def raises(): raise KeyError("x")
def prints(): sys.stderr.write("Traceback (most recent call last):\\n"); return 1
def hangs(): time.sleep(5)
def swallows():
    block = bytearray(1500 * 2**20); return 0
for call in (raises, prints, hangs, swallows): print(fuzzed.run(call)[2].split(":")[0])
print(fuzzed.run(lambda: 0))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    lines = ran.stdout.splitlines()
    assert lines[:3] == ["KeyError", "a traceback", "more than 1 s"] and "MiB more memory" in lines[3] and lines[4] == "(0, '', '')"
