"""A federation of processes on one machine: this one serves, and every centre has a process that reaches its own images alone.

Below the study's folder, while the study runs:

    federation/          certificates, logs/CENTRE.log
    federation/sites/    a folder a centre: its key, its images (hard links), its rounds

When the study is complete the sites' folders and the keys are removed; the logs stay.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vfmgl_lib import __version__
from vfmgl_lib.base.files import new_folder, write_json
from vfmgl_lib.base.places import LIBRARY
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.data.manifest_files import write_manifest
from vfmgl_lib.federation.client import Client, RoundLog
from vfmgl_lib.federation.rounds import Round
from vfmgl_lib.federation.servers import Server
from vfmgl_lib.tools.flower import credentials
from vfmgl_lib.tools.flower.ledger import LEDGER, Ledger
from vfmgl_lib.tools.flower.members import Members
from vfmgl_lib.tools.flower.network import FederationError, finish, network_rounds, wait_for_centers
from vfmgl_lib.tools.flower.programs import LOOPBACK, free_port
from vfmgl_lib.tools.flower.site import Site, hold_to_study, load_client, save_client
from vfmgl_lib.tools.flower.superlink import superlink

if TYPE_CHECKING:
    from vfmgl_lib.study.study import Study

log = logging.getLogger(__name__)
RESTARTS = 3
PATIENCE = 120.0  # seconds without this process after which a site's ends
START = 600.0  # seconds for all sites to import, load the teacher and connect


def run_rounds_apart(
    study: Study,
    clients: list[Client],
    server: Server,
    *,
    start: int = 0,
    progress: Callable[[int], object] = lambda batches: None,
    teacher_cache: Path | None = None,
) -> Iterator[Round]:
    """`federation.rounds.run_rounds` with every centre in a process of its own, over TLS.

    `clients` are not trained: after each round they are brought into the state of the sites, from the sites' folders, so that they can be
    evaluated and kept like those of the other engine. A site whose process ends is started again, up to three times.

    Raises: FederationError: a site that does not start, or ends again and again; names its log. QuorumError: too few took part.
    """
    folder, settings = study.folder / "federation", study.settings
    shutil.rmtree(folder, ignore_errors=True)
    port = free_port()
    credentials.write_certificates(folder, [LOOPBACK, "localhost"], days=30)
    sites = {client.center: _write_site(folder, study, client, port, start, teacher_cache) for client in clients}
    keys = {center: credentials.read_public_key(site / "key.pub") for center, site in sites.items()}
    processes = SiteProcesses(sites, folder / "logs")
    by_center = {client.center: client for client in clients}
    try:
        with superlink(folder, port, keys) as (grid, nodes):
            processes.start()
            members = Members(settings)
            if missing := wait_for_centers(grid, nodes, members, START, processes.check):
                reasons = "; ".join(f"centre {fault.center}: {fault.detail}" for fault in missing)
                raise FederationError(f"{reasons}, in {START:.0f} s; see {folder / 'logs'}")
            rounds = network_rounds(
                grid,
                nodes,
                server,
                study.last_round,
                settings=settings,
                start=start,
                members=members,
                folder=folder,
                arrived=lambda center, number: progress(by_center[center].batch_count(number)),
                waiting=processes.check,
            )
            shared = None
            for done in rounds:
                for center, site in sites.items():
                    _mirror(by_center[center], site / "state" / "rounds" / f"{done.number:03d}", done.shared)
                shared = done.shared
                yield done
            finish(grid, nodes, shared, deadline=60)
    finally:
        processes.stop()
    shutil.rmtree(folder / "sites")
    for file in folder.glob("*.*"):
        file.unlink()


class SiteProcesses:
    """The processes of the sites; all end with `stop`, or with this process."""

    def __init__(self, sites: dict[str, Path], logs: Path):
        self.sites, self.logs = sites, logs
        self.running: dict[str, subprocess.Popen] = {}
        self.starts = dict.fromkeys(sites, 0)
        logs.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        for center in self.sites:
            self._start(center)

    def check(self) -> None:
        """Starts a site again whose process has ended.

        Raises: FederationError: it did so too often.
        """
        for center, process in list(self.running.items()):
            if process.poll() is None:
                continue
            if self.starts[center] > RESTARTS:
                raise FederationError(f"centre {center}: its process ended {RESTARTS + 1} times; {self._log(center)} says why")
            log.warning("centre %s: its process ended with status %d; started again", center, process.returncode)
            self._start(center)

    def stop(self) -> None:
        """Ends what still runs: asked first, then forced."""
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        for process in self.running.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, center: str) -> None:
        self.starts[center] += 1
        command = [sys.executable, "-m", "vfmgl_lib.cli", "federation", "site", str(self.sites[center]), "--with-parent"]
        paths = [str(LIBRARY.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        with open(self._log(center), "ab") as stream:
            self.running[center] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def _log(self, center: str) -> Path:
        return self.logs / f"{center}.log"


def write_site_data(manifest: Manifest, center: str, folder: Path) -> Manifest:
    """A centre's part of a set in a folder of its own: hard links where the file system allows, copies otherwise, and its manifest."""
    part = replace(manifest, root=folder, table=manifest.table[manifest.table["center"] == center])
    masks = part.table["label"] if part.task_kind == "segmentation" else []
    for name in {*part.table["path"], *masks}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(manifest.root / name, folder / name)
        except OSError:
            shutil.copyfile(manifest.root / name, folder / name)
    write_manifest(part, folder / "manifest.csv")
    return part


def _write_site(folder: Path, study: Study, client: Client, port: int, start: int, teacher_cache: Path | None) -> Path:
    site = folder / "sites" / client.center
    manifest = write_site_data(study.manifest, client.center, site / "data")
    credentials.write_key_pair(site / "key")
    shutil.copyfile(folder / credentials.CA, site / credentials.CA)
    write_json(site / "study.json", study.settings.model_dump(mode="json") | {"vfmgl_lib": __version__})
    values = {
        "center": client.center,
        "superlink": f"{LOOPBACK}:{port}",
        "data": "data",
        "patience": PATIENCE,
        "threads": torch.get_num_threads(),
        "divided": True,
        "share_validation": False,  # the study measures everything itself
        "sandbox": True,
        "teacher_cache": str(teacher_cache.resolve()) if teacher_cache else "",
    }
    write_json(site / "site.yaml", values)  # JSON is YAML
    if start:
        # The study goes on after this round: the site's memory begins with what the study kept.
        key = Site.study_key(study.settings, manifest)
        hold_to_study(site / "state", key)
        Ledger(site / "state" / LEDGER, key, study.last_round, study.settings.exchange.noise, start)
        with new_folder(site / "state" / "rounds" / f"{start:03d}") as part:
            save_client(client, part)
    return site


def _mirror(client: Client, part: Path, shared: dict | None) -> None:
    """Brings a client into the state of its site after a round; a site that was away has no part of it."""
    client.log = RoundLog()
    if part.is_dir():
        load_client(client, part)
    if shared is not None and client.switches.adopts:
        client.adopt(shared)
