"""How a federation's server and its sites run: the ground of `vfmgl federation server` and `site`."""

from __future__ import annotations

import csv
import logging
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vfmgl_lib.base.checkpoint import load_tensors, save_tensors
from vfmgl_lib.base.files import FolderInUseError, content_of, locked, new_folder
from vfmgl_lib.base.places import DELIVERED, LIBRARY, profiles_folder
from vfmgl_lib.base.surroundings import keep_freed_memory
from vfmgl_lib.federation.rounds import Round
from vfmgl_lib.federation.servers import DECLARED_METRICS, Server
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.methods.registry import new_server
from vfmgl_lib.models.teacher_names import TeacherSource
from vfmgl_lib.study.assembly import center_datasets, feature_cache, new_client, new_student, study_teacher
from vfmgl_lib.tools.flower import credentials, sandbox
from vfmgl_lib.tools.flower.deadlines import Deadlines, joining_time
from vfmgl_lib.tools.flower.deployment import ServerFolder, SiteFolder, own_data, public_keys
from vfmgl_lib.tools.flower.gate import gate
from vfmgl_lib.tools.flower.members import MEMBERS, Members
from vfmgl_lib.tools.flower.network import client_app, finish, network_rounds, wait_for_centers
from vfmgl_lib.tools.flower.programs import free_port
from vfmgl_lib.tools.flower.site import Site, hold_to_study
from vfmgl_lib.tools.flower.status import DAMAGED, Now, status_page
from vfmgl_lib.tools.flower.superlink import SuperLinkEnded, superlink
from vfmgl_lib.tools.flower.supernode import run_supernode

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)


def run_server(given: ServerFolder) -> None:
    """Serves all rounds that are missing; every round is kept when it is finished, so that a server that ended goes on after it.

    A SuperLink that ends is started again, too, and the study goes on after its last whole round.

    Raises: FederationError, QuorumError: what stopped it, and what to do. SuperLinkEnded: twice without a round between.
    """
    with locked(_lock(given.folder), FolderInUseError(f"{given.folder}: this server runs already; stop it first")):
        _run_server(given)


def _lock(folder: Path) -> Path:
    (folder / "state").mkdir(exist_ok=True)
    return folder / "state" / ".lock"


def _run_server(given: ServerFolder) -> None:
    settings, state, keys = given.settings, given.folder / "state", public_keys(given.folder)
    hold_to_study(state, given.study.key())
    for left in state.glob("aside-*"):
        shutil.rmtree(left)  # of a server that was killed
    inner, ended = free_port() if settings.nginx else settings.port, -1
    with ExitStack() as stack:
        stack.callback(Now(state).ends)
        if settings.nginx:
            stack.enter_context(gate(given.folder, settings.host, settings.port, inner))
        if settings.status_port:
            stack.enter_context(status_page(given.folder, given.study, settings.status_port))
        while True:
            start = last_round(given.folder)
            try:
                with superlink(given.folder, inner, keys) as (grid, nodes):
                    log.info("listening on port %d for %s", settings.port, ", ".join(sorted(keys)))
                    _serve(given, start, grid, nodes)
                return
            except SuperLinkEnded as error:
                if ended == start:
                    raise
                log.warning("%s; it is started again", error)
                ended = start


def _serve(given: ServerFolder, start: int, grid: Grid, nodes: dict[str, int]) -> None:
    """The rounds after `start`."""
    settings, state = given.study, given.folder / "state"
    members, rounds, now = Members(settings, state / MEMBERS), state / "rounds", Now(state)
    last = max(report_rounds(settings).values())
    server = new_server(settings, sorted(nodes), new_student(settings))
    if start and server.checkpoint:
        server.load_state_dict(load_tensors(rounds / f"{start:03d}", server.checkpoint, DAMAGED))
        log.info("going on after round %d", start)

    def waiting() -> None:
        if now.due:
            there = {info.node_id for info in grid.get_nodes()}
            now.renew([center for center, node in nodes.items() if node in there])

    now.begins(list(nodes))
    for fault in wait_for_centers(grid, nodes, members, joining_time(given.settings.wait, start), waiting):
        log.warning("centre %s: %s", fault.center, fault.detail)
    shared = server.state_dict() if server.checkpoint == "shared" else None
    deadlines = Deadlines(settings.faults, _times(rounds))
    now.begins(list(nodes))
    for done in network_rounds(
        *(grid, nodes, server, last),
        settings=settings,
        start=start,
        members=members,
        deadlines=deadlines,
        folder=state,
        arrived=lambda center, number: now.arrived(center),
        waiting=waiting,
    ):
        shared = done.shared
        keep_round(rounds, server, done)
        log.info("round %d of %d: %s took part", done.number, last, ", ".join(done.centers))
        now.begins(list(nodes) if done.number < last else [])
    finish(grid, nodes, shared, deadline=60)
    log.info("finished: %d rounds, in %s", last, rounds)


def last_round(folder: Path) -> int:
    """The last whole round that a server's folder has; 0: none."""
    return max((int(path.name) for path in (folder / "state" / "rounds").glob("[0-9]*") if path.name.isdigit()), default=0)


def _times(rounds: Path) -> dict[str, float]:
    """centre -> the longest time of an answer, from the rounds that are kept; what is damaged is told and left out."""
    longest: dict[str, float] = {}
    for file in rounds.glob("[0-9]*/traffic.csv"):
        try:
            with content_of(file, DAMAGED), open(file, newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    longest[row["center"]] = max(float(row["seconds"] or 0), longest.get(row["center"], 0.0))
        except ValueError as error:  # the study does not depend on it
            log.warning("%s", error)
    return {center: seconds for center, seconds in longest.items() if seconds}


def keep_round(rounds: Path, server: Server, done: Round) -> None:
    """Writes what a server needs to go on after a round, and what became of it."""
    with new_folder(rounds / f"{done.number:03d}") as part:
        save_tensors(part, {server.checkpoint: server.state_dict()} if server.checkpoint else {})
        _write_rows(part / "faults.csv", ["round", "center", "kind", "detail"], [vars(fault) for fault in done.faults])
        _write_rows(part / "metrics.csv", ["round", "center", *DECLARED_METRICS], done.metrics)
        _write_rows(part / "traffic.csv", ["round", "center", "received", "sent", "seconds"], done.traffic)


def run_site(given: SiteFolder) -> None:
    """Answers the server until the study is finished.

    Raises: ConfigError, ManifestError: settings or data that cannot be used. ConnectionError: no server for too long.
    """
    with locked(_lock(given.folder), FolderInUseError(f"{given.folder}: this site runs already; stop it first")):
        _run_site(given)


def _run_site(given: SiteFolder) -> None:
    settings, study = given.settings, given.study
    manifest = own_data(given, files=True)  # every one as it was listed: a study's images do not change between two starts
    temporary = given.folder / "tmp"
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary.resolve())
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.sandbox:
        sandbox.restrict([*_readable(given), manifest.root.resolve()], _writable(given))
    keep_freed_memory()
    teacher = study_teacher(study)
    sets = center_datasets(study, manifest, settings.center, teacher)
    cache = feature_cache(study, teacher, given.folder / settings.teacher_cache if settings.teacher_cache else None, manifest.reading)
    client = new_client(study, settings.center, sets, teacher, cache)
    site = Site(client, given.folder / "state", Site.study_key(study, manifest), settings.share_validation)
    run_supernode(
        client_app(site),
        settings.superlink,
        given.folder / credentials.CA,
        given.folder / "key",
        settings.patience,
        given.folder / "tmp" / "supernode",
    )
    log.info("finished: the models are in %s", site.folder)


def _readable(given: SiteFolder) -> list[Path]:
    """Software, the system's own files, this centre's data and weights; no home, no other centre's folder."""
    source = given.study.teacher.source
    weights = Path(TeacherSource.parse(source).weights)
    places: list[str | Path] = [sys.prefix, sys.base_prefix, sys.exec_prefix, given.data, given.folder]
    # Packages also lie elsewhere: a user's own, or those of the environment below this one.
    places += [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    places += [LIBRARY, DELIVERED / "notebooks" / "profiles", profiles_folder()]
    places += ["/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev", "/opt/conda", "/run/systemd/resolve", torch.hub.get_dir()]
    places += [os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface")), *([weights] if weights.is_file() else [])]
    if given.study.student.weights not in ("none", "hub"):
        places.append(given.study.student.weights)
    return [Path(place).resolve() for place in places]


def _writable(given: SiteFolder) -> list[Path]:
    cache = [given.folder / given.settings.teacher_cache] if given.settings.teacher_cache else []
    for place in (given.folder / "state", *cache):
        place.mkdir(parents=True, exist_ok=True)
    return [place.resolve() for place in (given.folder / "state", given.folder / "tmp", *cache, Path("/dev/shm"), Path("/dev/null"))]


def _write_rows(file: Path, columns: list[str], rows: list[dict]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
