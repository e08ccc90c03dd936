"""VFMGL as a standard Flower App: `flwr run .` in `deploy/flower_app`, on Flower's deployment or simulation runtime.

The ServerApp and the ClientApp are the same server, client and rounds as everywhere in this library, over Flower's public interface alone.
`deploy/flower_app/README.md` says how it is run. What a run leaves lies below `$FLWR_HOME/vfmgl/RUN`, or where `out` says.

A node is a centre of its own images where its node config says `center` and `data`, as `vfmgl data prepare` makes them. Otherwise it is a
centre of the embedded phantoms: the one at its `partition-id` or, where there are more nodes than centres, a part of one's patients.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from vfmgl_lib.config import ConfigError
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.methods.registry import new_server
from vfmgl_lib.study.assembly import center_datasets, feature_cache, new_client, new_student, study_teacher, with_needed_validation
from vfmgl_lib.study.workspace import Workspace, open_workspace
from vfmgl_lib.tools.flower.members import Members
from vfmgl_lib.tools.flower.messages import ABOUT, FINISH, MODEL, pack
from vfmgl_lib.tools.flower.network import FederationError, client_app, network_rounds, wait_for_centers
from vfmgl_lib.tools.flower.running import keep_round
from vfmgl_lib.tools.flower.site import Site

log = logging.getLogger(__name__)
WAIT = 600.0  # seconds for the nodes to be there, and to say who they are
client = ClientApp()
server = ServerApp()


@client.query()
@client.query("finish")
@client.train()
def answer(message: Message, context: Context) -> Message:
    """A centre's answer to any message. Flower may start a process for each: what lasts is on disk."""
    return client_app(_site(context))(message, context)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds of a study."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)  # which `flwr log` shows
    for talkative in ("httpx", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    settings, folder = _workspace(context, "").settings, _folder(context)
    nodes = _centers(grid, int(context.run_config["min-available-nodes"]))
    state = new_server(settings, sorted(nodes), new_student(settings))
    last, shared = max(report_rounds(settings).values()), None
    members = Members(settings)
    for fault in wait_for_centers(grid, nodes, members, WAIT):
        log.warning("centre %s: %s", fault.center, fault.detail)
    for done in network_rounds(grid, nodes, state, last, settings=settings, members=members):
        shared = done.shared
        keep_round(folder / "rounds", state, done)
        log.info("round %d of %d: %s took part", done.number, last, ", ".join(done.centers))
    last_model = RecordDict({MODEL: pack(shared)} if shared is not None else {})
    grid.send_and_receive([Message(last_model, node, FINISH) for node in nodes.values()], timeout=WAIT)
    log.info("finished: %d rounds, in %s", last, folder / "rounds")


def _centers(grid: Grid, least: int) -> dict[str, int]:
    """centre -> node, as the nodes themselves say, once there are enough of them."""
    end = time.monotonic() + WAIT
    while len(nodes := list(grid.get_node_ids())) < least:
        if time.monotonic() > end:
            raise FederationError(f"{len(nodes)} nodes are there after {WAIT:.0f} s, min-available-nodes asks for {least}")
        time.sleep(1)
    found: dict[str, int] = {}
    for reply in grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes], timeout=WAIT):
        if reply.has_error():
            raise FederationError(f"node {reply.metadata.src_node_id} does not say who it is: {reply.error.reason}")
        about: Any = reply.content[ABOUT]
        if found.setdefault(about["center"], reply.metadata.src_node_id) != reply.metadata.src_node_id:
            raise FederationError(f"two nodes say that they are centre {about['center']}; give each its own center, or partition-id")
    if len(found) < least:
        raise FederationError(f"{len(found)} nodes say who they are, min-available-nodes asks for {least}")
    return found


def _workspace(context: Context, data: str) -> Workspace:
    """The run's settings and, with "", the embedded phantoms."""
    given: Any = context.run_config
    opened = open_workspace(given["task"], given["profile"], data=data, teacher=given["teacher"], seed=given["seed"], runs=_home() / "runs")
    return replace(opened, settings=opened.settings.model_copy(update={"method": given["method"], "centers": None}))


def _site(context: Context) -> Site:
    node: Any = context.node_config
    workspace = _workspace(context, str(node.get("data", "")))
    settings = workspace.settings
    if "center" in node:
        center, manifest = str(node["center"]), workspace.manifest
    elif "partition-id" in node:
        center, manifest = partition(workspace.manifest, int(node["partition-id"]), int(node["num-partitions"]))
    else:
        raise ConfigError("the node config says neither center nor partition-id and num-partitions: which centre is this?")
    if center not in manifest.training_centers:
        raise ConfigError(f"centre {center} has no images to train with; there are {', '.join(manifest.training_centers)}")
    own = with_needed_validation(replace(manifest, table=manifest.table[manifest.table["center"] == center]), settings)
    teacher = study_teacher(settings)
    sets = center_datasets(settings, own, center, teacher)
    cache = feature_cache(settings, teacher, _home() / "teacher_cache", own.reading)
    client, shares = new_client(settings, center, sets, teacher, cache), bool(node.get("share-validation", True))
    return Site(client, _folder(context) / center, Site.study_key(settings, own), shares)


def partition(manifest: Manifest, number: int, of: int) -> tuple[str, Manifest]:
    """One of `of` centres made of a set's own.

    Returns: its name, and the samples: a centre's own where there are as many, otherwise every so many of its patients.
    Raises: ConfigError: fewer than there are centres, or more of one than it has training patients.
    """
    centers = manifest.training_centers
    if of < len(centers):
        raise ConfigError(f"num-partitions must be {len(centers)} or more, got {of}: the set has the centres {', '.join(centers)}")
    center, share = centers[number % len(centers)], number // len(centers)
    shares = math.ceil((of - number % len(centers)) / len(centers))
    table = manifest.table[manifest.table["center"] == center]
    if shares == 1:
        return center, replace(manifest, table=table)
    patients = table[table["split"] == "train"]["patient"].nunique()
    if shares > patients:
        raise ConfigError(f"num-partitions {of} asks for {shares} parts of centre {center}, which has {patients} training patients")
    name = f"{center}-{share + 1}"
    places = table.groupby("split")["patient"].transform(lambda names: names.map({name: i for i, name in enumerate(sorted(set(names)))}))
    return name, replace(manifest, table=table[places % shares == share].assign(center=name))


def _home() -> Path:
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr") / "vfmgl"


def _folder(context: Context) -> Path:
    return Path(str(context.run_config["out"]) or _home() / str(context.run_id))
