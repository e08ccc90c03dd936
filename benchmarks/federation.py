"""Load on the server: many centres with tiny students over TLS. Memory over the rounds, with the model's size, and the traffic.

Many centres show whether memory stays flat over the rounds; how it grows with the model is compared with few, which is faster.

The server is real (SuperLink, rounds, weighted mean); the centres are threads of one other process that answer at once with random tensors,
so that what is measured is the server and the line, not training. Every configuration has a server process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from measure import Row, command_line, report

from vfmgl_lib.federation.servers import Averaging, Update
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.students import STUDENTS
from vfmgl_lib.tools.flower import credentials
from vfmgl_lib.tools.flower.network import finish, network_rounds

MIB = 2**20


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--centers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--width", type=int, default=8, help="of the ResNet18 that all centres have")
    parser.add_argument("--few", type=int, default=5, help="centres of the runs that compare models")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="of those models")
    parser.add_argument("--serve", metavar="JSON", help="run one configuration and print what was measured (used by this script itself)")
    arguments = parser.parse_args()
    if arguments.serve:
        sys.stdout.write(json.dumps(_serve(**json.loads(arguments.serve))) + "\n")
        return
    many = _apart(centers=arguments.centers, width=arguments.width, rounds=arguments.rounds)
    # From the second round on: everything is imported and every buffer there.
    rounds = np.arange(2, arguments.rounds + 1)
    growth, _ = np.polyfit(rounds, many["memory"][1:], 1) / many["model"]
    _report(
        many,
        [Row("growth a round, models", [growth], "x")],
        # A server that kept the updates would grow by as many models as there are centres.
        {"memory is flat (a tenth of what the updates of a round take)": growth < arguments.centers / 10},
        arguments.csv,
    )
    few = [_apart(centers=arguments.few, width=width, rounds=4) for width in arguments.widths]
    for one in few:
        _report(one, [], {}, arguments.csv)
    models, peaks = [one["model"] for one in few], [np.median(one["peak"][1:]) - one["start"] for one in few]
    slopes = list(np.diff(peaks) / np.diff(models))
    report(
        "federation",
        f"{arguments.few} centres, models of {', '.join(f'{model / MIB:.1f}' for model in models)} MiB",
        [Row("peak memory a model's size, step by step", slopes, "x")],
        checks={"memory grows no faster than the model": max(slopes[1:], default=0) < 1.5 * slopes[0]},
        csv_file=arguments.csv,
    )


def _report(one: dict, rows: list[Row], checks: dict[str, bool], file: Path) -> None:
    over = {name: [(value - one["start"]) / MIB for value in one[name][1:]] for name in ("memory", "peak")}
    report(
        "federation",
        f"{one['centers']} centres, {one['model'] / MIB:.1f} MiB model, {len(one['seconds'])} rounds",
        [
            Row("seconds a round", one["seconds"][1:]),
            Row("server's processor time a round", one["busy"][1:]),
            Row("memory after a round, over the start", over["memory"], "MiB"),
            Row("peak in a round, over the start", over["peak"], "MiB"),
            *rows,
            Row("to a centre, a round", [size / MIB for size in one["received"]], "MiB"),
            Row("from a centre, a round", [size / MIB for size in one["sent"]], "MiB"),
        ],
        checks={"every centre took part in every round": len(one["sent"]) == one["centers"] * len(one["seconds"])} | checks,
        csv_file=file,
    )


def _apart(**values: int) -> dict:
    done = subprocess.run([sys.executable, __file__, "--serve", json.dumps(values)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{values}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _serve(centers: int, width: int, rounds: int) -> dict:
    from vfmgl_lib.tools.flower.programs import free_port
    from vfmgl_lib.tools.flower.superlink import superlink

    settings = load_settings("camelyon17", "paper", method="fedavg")
    state = STUDENTS["resnet18"](2, width, "none").state_dict()
    names = [f"C{index:03d}" for index in range(centers)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        credentials.write_certificates(folder, ["127.0.0.1"], days=1)
        for name in names:
            credentials.write_key_pair(folder / name)
        keys = {name: credentials.read_public_key(folder / f"{name}.pub") for name in names}
        port = free_port()
        sites = multiprocessing.get_context("spawn").Process(target=_sites, args=(folder, names, port, width), daemon=True)
        server, process = Averaging(state, sends_initial=True), psutil.Process(os.getpid())
        found: dict[str, list] = {name: [] for name in ("seconds", "busy", "memory", "peak", "received", "sent")}
        with superlink(folder, port, keys) as (grid, nodes):
            both = [process, *(one for one in process.children() if "flower-superlink" in " ".join(one.cmdline()))]
            sites.start()
            start, clock, busy = _memory(both), time.perf_counter(), time.process_time()
            for done in network_rounds(grid, nodes, server, rounds, settings=settings):
                found["seconds"].append(time.perf_counter() - clock)
                found["busy"].append(time.process_time() - busy)
                found["memory"].append(_memory(both))
                found["peak"].append(sum(_peak(one.pid) for one in both))
                for name in ("received", "sent"):
                    found[name] += [row[name] for row in done.traffic]
                for one in both:  # the next round has a peak of its own
                    Path(f"/proc/{one.pid}/clear_refs").write_text("5", encoding="ascii")
                clock, busy = time.perf_counter(), time.process_time()
            finish(grid, nodes, None, deadline=30)
        sites.join(30)
    model = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return {"centers": centers, "model": model, "start": start} | found


def _memory(processes: list[psutil.Process]) -> int:
    return sum(process.memory_info().rss for process in processes)


def _peak(pid: int) -> int:
    """Most memory of a process since its `clear_refs` was last written, bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _sites(folder: Path, names: list[str], port: int, width: int) -> None:
    """Centres that answer with random tensors of the model's shape."""
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    from vfmgl_lib import __version__
    from vfmgl_lib.tools.flower.messages import ABOUT, update_records
    from vfmgl_lib.tools.flower.supernode import run_supernode

    study = load_settings("camelyon17", "paper", method="fedavg").key()

    def app(name: str) -> ClientApp:
        made, student = ClientApp(), STUDENTS["resnet18"](2, width, "none")
        state = {key: torch.randn_like(t) if t.is_floating_point() else t for key, t in student.state_dict().items()}

        @made.query()
        def about(message: Message, context: object) -> Message:
            said = {"center": name, "study": study, "vfmgl_lib": __version__, "teacher": "none", "samples": 10}
            return Message(RecordDict({ABOUT: ConfigRecord({**said})}), reply_to=message)

        @made.train()
        def train(message: Message, context: object) -> Message:
            state["fc.bias" if "fc.bias" in state else next(iter(state))].add_(1)  # no two answers are the same object
            return Message(update_records(Update(name, state, 10, {"task_loss": 1.0, "kept_share": 1.0})), reply_to=message)

        @made.query("finish")
        def end(message: Message, context: object) -> Message:
            return Message(RecordDict(), reply_to=message)

        return made

    arguments = [(app(name), f"127.0.0.1:{port}", folder / credentials.CA, folder / name, 60.0, folder / f"node-{name}") for name in names]
    threads = [threading.Thread(target=run_supernode, args=given) for given in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
