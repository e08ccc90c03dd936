"""One model's latency and peak memory in this very process: started by `evaluation.complexity.footprint`, JSON in, JSON out.

The order names one of

    {"onnx": FILE}                                    an exported model under onnxruntime; torch is not imported
    {"student": NAME, "classes": K, "width": W, "image_size": S}    a student under torch, of two classes where none are said; weights as
                                                      at its start: they change neither time nor memory
    {"teacher": NAME, "arguments": {...}, "image_size": S}    a timm model under torch, with its arguments

with batch, device, threads and seconds. The first run warms up and is not counted, unless it alone takes longer than that time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

ENOUGH = 5  # calls; of fewer the 95th percentile would be the slowest under another name


def main() -> None:
    order = json.load(sys.stdin)
    run, before, runtime, gpu = (_onnx if "onnx" in order else _torch)(order)
    first = _milliseconds(run)
    times = [first] if first > 1000 * order["seconds"] else []
    while sum(times) < 1000 * order["seconds"]:
        times.append(_milliseconds(run))
    low, high = np.percentile(times, (50, 95))
    high = high if len(times) >= ENOUGH else float("nan")
    peak = status_bytes("VmHWM")
    result = {"runtime": runtime, "runs": len(times), "p50_ms": low, "p95_ms": high}
    sys.stdout.write(json.dumps(result | {"peak_bytes": peak, "added_bytes": peak - before, "gpu_bytes": gpu()}) + "\n")


def _milliseconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def _onnx(order: dict) -> tuple[Callable, int, str, Callable]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = order["threads"]
    before = status_bytes("VmRSS")
    session = onnxruntime.InferenceSession(order["onnx"], options, providers=["CPUExecutionProvider"])
    shape = [order["batch"], *session.get_inputs()[0].shape[1:]]
    images = np.random.default_rng(0).random(shape, np.float32)
    return lambda: session.run(None, {"image": images}), before, f"onnxruntime {onnxruntime.__version__}", lambda: float("nan")


def _torch(order: dict) -> tuple[Callable, int, str, Callable]:
    import torch

    from vfmgl_lib.models.students import build_student

    torch.set_num_threads(order["threads"])
    device = torch.device(order["device"])
    if "teacher" in order:
        from vfmgl_lib.models.networks import network_for_counting

        before = status_bytes("VmRSS")
        model = network_for_counting(order["teacher"], order["arguments"], order["image_size"])
    else:
        before = status_bytes("VmRSS")
        model = build_student(order["student"], order.get("classes", 2), order["width"])
    model = model.to(device).eval()
    images = torch.rand(order["batch"], 3, order["image_size"], order["image_size"], device=device)

    def run() -> None:
        with torch.inference_mode():
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run, before, f"torch {torch.__version__}", lambda: torch.cuda.max_memory_allocated() if device.type == "cuda" else float("nan")


def status_bytes(name: str) -> int:
    """Bytes, a line of /proc/self/status. Not getrusage: its maximum begins with that of the process that started this one."""
    if sys.platform != "linux":
        raise OSError(f"peak memory is read from /proc/self/status, which {sys.platform} does not have: measure it on Linux")
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
