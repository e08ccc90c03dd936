"""Load on the server: many centres with tiny students over TLS. Memory over the rounds, with the model's size, and the traffic.

The server is real (SuperLink, rounds, weighted mean); the centres are threads of one other process that answer at once with random tensors,
so that what is measured is the server and the line, not training. Every configuration has a server process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from measure import Row, command_line, report

from vfmgl_lib.config import load_settings
from vfmgl_lib.federation import credentials
from vfmgl_lib.federation.flower import finish, network_rounds, update_records
from vfmgl_lib.federation.strategies import Averaging, Update
from vfmgl_lib.models.students import STUDENTS

MIB = 2**20


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--centers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=8, help="of the ResNet18; the second model has twice the width, four times the size")
    parser.add_argument("--serve", metavar="JSON", help="run one configuration and print what was measured (used by this script itself)")
    arguments = parser.parse_args()
    if arguments.serve:
        sys.stdout.write(json.dumps(_serve(**json.loads(arguments.serve))) + "\n")
        return
    configurations = {
        "few": {"centers": max(2, arguments.centers // 5), "width": arguments.width},
        "all": {"centers": arguments.centers, "width": arguments.width},
        "large": {"centers": arguments.centers, "width": 2 * arguments.width},
    }
    found = {name: _apart(rounds=arguments.rounds, **values) for name, values in configurations.items()}
    for name, one in found.items():
        shape = f"{one['centers']} centres, {one['model'] / MIB:.1f} MiB model, {arguments.rounds} rounds"
        after = one["memory"][2:]  # from the third round on: everything is imported and every buffer there
        growth = (after[-1] - after[0]) / max(len(after) - 1, 1) / one["model"]
        report(
            "federation",
            shape,
            [
                Row("seconds a round", one["seconds"][1:]),
                Row("server's memory over the start", [(m - one["start"]) / MIB for m in after], "MiB"),
                Row("growth a round, models", [growth], "x"),
                Row("to a centre, a round", [one["received"] / MIB], "MiB"),
                Row("from a centre, a round", [one["sent"] / MIB], "MiB"),
            ],
            # A server that kept the updates would grow by as many models as there are centres.
            checks={f"{name}: memory is flat (less than one model a round)": growth < 1},
            csv_file=arguments.csv,
        )


def _apart(**values: int) -> dict:
    done = subprocess.run([sys.executable, __file__, "--serve", json.dumps(values)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{values}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _serve(centers: int, width: int, rounds: int) -> dict:
    from vfmgl_lib.federation.superlink import superlink

    settings = load_settings("camelyon17", "paper", method="fedavg")
    state = STUDENTS["resnet18"](2, width, "none").state_dict()
    names = [f"C{index:03d}" for index in range(centers)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        credentials.write_certificates(folder, ["127.0.0.1"], days=1)
        for name in names:
            credentials.write_key_pair(folder / name)
        keys = {name: credentials.read_public_key(folder / f"{name}.pub") for name in names}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        sites = multiprocessing.get_context("spawn").Process(target=_sites, args=(folder, names, port, width), daemon=True)
        server, process = Averaging(state, sends_initial=True), psutil.Process(os.getpid())
        seconds, memory, traffic = [], [], []
        with superlink(folder, "127.0.0.1", port, keys) as (grid, nodes):
            sites.start()
            start, clock = process.memory_info().rss, time.perf_counter()
            for done in network_rounds(grid, nodes, server, rounds, settings=settings):
                assert len(done.centers) == centers
                seconds.append(time.perf_counter() - clock)
                memory.append(process.memory_info().rss)
                traffic, clock = done.traffic, time.perf_counter()
            finish(grid, nodes, None, deadline=30)
        sites.join(30)
    model = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return {"centers": centers, "model": model, "start": start, "seconds": seconds, "memory": memory} | {
        name: traffic[0][name] for name in ("received", "sent")
    }


def _sites(folder: Path, names: list[str], port: int, width: int) -> None:
    """Centres that answer with random tensors of the model's shape."""
    from flwr.app import Message, RecordDict
    from flwr.clientapp import ClientApp

    from vfmgl_lib.federation.supernode import serve

    def app(name: str) -> ClientApp:
        made, student = ClientApp(), STUDENTS["resnet18"](2, width, "none")
        state = {key: torch.randn_like(t) if t.is_floating_point() else t for key, t in student.state_dict().items()}

        @made.train()
        def train(message: Message, context: object) -> Message:
            state["fc.bias" if "fc.bias" in state else next(iter(state))].add_(1)  # no two answers are the same object
            return Message(update_records(Update(name, state, 10, {"task_loss": 1.0, "kept_share": 1.0})), reply_to=message)

        @made.query("finish")
        def end(message: Message, context: object) -> Message:
            return Message(RecordDict(), reply_to=message)

        return made

    arguments = [(app(name), f"127.0.0.1:{port}", folder / credentials.CA, folder / name, 60.0) for name in names]
    threads = [threading.Thread(target=serve, args=given) for given in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
