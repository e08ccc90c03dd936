"""A federation over TLS: the same shared model as in one process, what leaves a centre byte for byte, and what an outsider cannot do."""

import json
from pathlib import Path

import httpx
import pytest
import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.servers import DECLARED_METRICS, Update, UpdateError
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools.flower import network as flower
from vfmgl_lib.tools.flower import sandbox
from vfmgl_lib.tools.flower.members import Members
from vfmgl_lib.tools.flower.messages import pack, read_update, train_records, unpack, update_records
from vfmgl_lib.tools.flower.network import client_app
from vfmgl_lib.tools.flower.one_machine import run_rounds_apart
from vfmgl_lib.tools.flower.site import Site
from vfmgl_lib.tools.flower.superlink import superlink

SMALLEST = Path(__file__).parents[2] / "smallest.yaml"


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["vfmgl", "fedavg", "fedprox", "harmofl", "metafed", "fedbn", "proxyfl", "local"])
def test_the_network_changes_no_bit(federation, wire, tmp_path, method):
    apart, server = federation("nuclei", method, optimizer__lr=0.005, federation__rounds=2, faults__deadline=600)
    together, other = federation("nuclei", method, optimizer__lr=0.005, federation__rounds=2)
    done = wire(tmp_path, apart).run(server, 2)
    expected = list(run_rounds(together, other, 2))
    assert [round.centers for round in done] == [["SiteA", "SiteB"]] * 2 and not any(round.faults for round in done)
    for one, round in zip(done, expected, strict=True):
        assert (one.shared is None) == (round.shared is None)
    assert _equal(server.state_dict(), other.state_dict())
    for client, twin in zip(apart, together, strict=True):
        if client.switches.adopts:
            client.adopt(done[-1].shared)
        assert _equal(client.student.state_dict(), twin.student.state_dict())
    if done[-1].shared is not None:
        kept = safetensors.torch.load_file(tmp_path / "site-SiteA" / "shared" / "shared.safetensors")
        assert _equal(kept, done[-1].shared), "every site has the last shared model"


@pytest.mark.parametrize("method", ["vfmgl", "harmofl"])
def test_every_byte_that_a_centre_sends_is_declared(federation, wire, line, tmp_path, monkeypatch, method):
    # Another rate than elsewhere: Flower does not send what a node has just sent once more.
    clients, server = federation("nuclei", method, optimizer__lr=0.004, federation__rounds=2, faults__deadline=600)
    sent, send = [], httpx.Client.send

    def recording(self, request, **more):
        # From a site to its SuperNode, which passes it on.
        if "/v1/runtime/" in str(request.url) and request.url.port != line.port:
            sent.append((request.url.path, request.read(), dict(request.headers)))
        return send(self, request, **more)

    monkeypatch.setattr(httpx.Client, "send", recording)
    wire(tmp_path, clients).run(server, 2)
    objects = [content for path, content, _ in sent if path.endswith("/push-object")]
    model = {name: tuple(tensor.shape) for name, tensor in server.state.items() if name not in server.aggregates}
    files = [file for content in objects for file in _safetensors_in(content)]
    kinds = [{name: tuple(tensor.shape) for name, tensor in file.items()} for file in files]
    aggregates = dict(server.aggregates)
    assert kinds.count(model) >= 4, "two centres, two rounds"
    assert all(kind in (model, aggregates, {}) for kind in kinds), "a tensor left that is not declared"
    # Nothing large hides beside the tensors: what is left of every message is names, counts and declared metrics.
    tensors = sum(len(safetensors.torch.save(file)) for file in files)
    rest = sum(map(len, objects)) - tensors
    assert rest < 3000 * len(objects), "something else of size left a centre"
    images = [client.data[0]["image"] for client in clients]
    for image in images:
        assert not any(image.numpy().tobytes()[:256] in content for _, content, _ in sent)
    secrets = [str(client.data.table["path"][0]).encode() for client in clients] + [
        client.data.table["patient"][0].encode() for client in clients if len(client.data.table["patient"][0]) > 3
    ]
    for path, content, headers in sent:
        for secret in secrets:
            assert secret not in content and secret not in str(headers).encode(), f"{secret} in {path}"


def _safetensors_in(content):
    """The safetensors files within an object as it was sent."""
    start = content.find(b"ArrayChunk ")
    if start < 0:
        return []
    data = content[content.index(b"\0", start) + 1 :]
    header = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + header])
    end = max([entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"], default=0)
    return [safetensors.torch.load(data[: 8 + header + end])]


def test_a_message_is_read_back_and_nothing_else_is_accepted():
    state = {"w": torch.randn(3, 2), "n": torch.tensor(4), "half": torch.ones(5, dtype=torch.float16)}
    update = Update("A", state, 7, {"task_loss": 0.5, "kept_share": float("nan")}, {"amplitude": torch.ones(3, 1, 1)})
    read = read_update(update_records(update), "A")
    assert _equal(read.state, state) and _equal(read.aggregates, update.aggregates) and read.samples == 7
    assert read.metrics.keys() == update.metrics.keys() < set(DECLARED_METRICS)
    with pytest.raises(UpdateError, match="centre B: says that it is centre 'A'"):
        read_update(update_records(update), "B")
    content = update_records(update)
    content["images"] = ArrayRecord({"x": pack(state)["safetensors"]})
    with pytest.raises(UpdateError, match=r"centre A: holds \['about', 'aggregates', 'images', 'metrics', 'model'\]"):
        read_update(content, "A")
    with pytest.raises(UpdateError, match="centre A: holds"):
        read_update(RecordDict({"about": ConfigRecord({"center": "A"}), "metrics": MetricRecord()}), "A")
    broken = pack(state)
    broken["safetensors"].data = broken["safetensors"].data[:200]
    with pytest.raises(UpdateError, match="update of centre A: not a safetensors file"):
        unpack(broken, "centre A")
    with pytest.raises(UpdateError, match=r"update of centre A: not a safetensors file: .*expected an ArrayRecord with safetensors"):
        unpack(ConfigRecord({"safetensors": b"no array"}), "centre A")


@pytest.mark.parametrize("metrics", [MetricRecord({"task_loss": [0.5, 0.4]}), ConfigRecord({"task_loss": "low"})])
def test_an_update_whose_metrics_are_no_numbers_is_refused(metrics):
    content = update_records(Update("A", {"w": torch.zeros(1)}, 7, {}, {}))
    content["metrics"] = metrics
    with pytest.raises(UpdateError, match="update of centre A: the metric task_loss must be a number, got"):
        read_update(content, "A")


def test_a_site_goes_on_in_no_folder_of_another_study_or_version(federation, tmp_path):
    clients, _ = federation("nuclei")
    Site(clients[0], tmp_path, "key")
    Site(clients[0], tmp_path, "key")
    with pytest.raises(ValueError, match="holds the rounds of study key, this one is other; choose another folder"):
        Site(clients[0], tmp_path, "other")
    (tmp_path / "study.json").write_text('{"key": "key"}')  # as 0.1.0 wrote it
    with pytest.raises(ValueError, match=r"was made with vfmgl_lib 0.1.0, this is .*; choose another folder"):
        Site(clients[0], tmp_path, "key")
    (tmp_path / "study.json").unlink()
    with pytest.raises(ValueError, match=r"holds rounds of an unknown study, its study\.json is missing; choose another folder"):
        Site(clients[0], tmp_path, "key")


def test_an_error_at_a_centre_leaves_it_as_a_kind_alone(federation, message, tmp_path):
    clients, _ = federation("nuclei")
    site = Site(clients[0], tmp_path, "key")
    clients[0].run_round = lambda *arguments: (_ for _ in ()).throw(FileNotFoundError("/data/patient-4711/scan.png"))
    reply = client_app(site)(message(train_records(1, None, clients[0].settings.key()), "train"), None)
    assert dict(reply.content["about"]) == {"failed": "FileNotFoundError"} and set(reply.content) == {"about"}


def test_two_centres_with_one_key_are_refused(line):
    with (
        pytest.raises(ValueError, match="SiteA and SiteB have the same public key"),
        superlink(line.folder, line.port, dict.fromkeys(line.keys, line.keys["SiteA"])),
    ):
        pass


@pytest.mark.parametrize(("change", "refused"), [("center", "its center must be SiteA, it says 'SiteB'"), ("seed", "its study must be")])
def test_a_centre_under_another_s_name_or_with_another_study_is_refused(federation, wire, line, tmp_path, change, refused):
    clients, _ = federation("nuclei")
    members = Members(clients[0].settings)
    if change == "center":
        clients[0].center = "SiteB"
    else:
        clients[0].settings = clients[0].settings.model_copy(update={"seed": 5})
    wire(tmp_path, clients[:1]).connect()
    with pytest.raises(flower.FederationError, match=f"centre SiteA: {refused}"):
        flower.wait_for_centers(line.grid, {"SiteA": line.nodes["SiteA"]}, members, 300)


@pytest.mark.skipif(not sandbox.landlock_version(), reason="this kernel has no Landlock: a process cannot be kept to its own files")
def test_a_federation_of_processes_equals_one_process(tmp_path):
    """Real processes, TLS, keys, each confined to its own folder."""
    workspace = open_workspace("nuclei", SMALLEST, runs=tmp_path / "runs")
    together = workspace.run("vfmgl", progress=False)
    apart = workspace.run("vfmgl", progress=False, network=run_rounds_apart)
    for number in range(1, together.last_round + 1):
        name = Path("rounds") / f"{number:03d}" / "shared.safetensors"
        assert (together.folder / name).read_bytes() == (apart.folder / name).read_bytes()
    for table in ("predictions", "metrics", "steps", "stages", "mean_features"):
        assert (together.folder / f"{table}.csv").read_text() == (apart.folder / f"{table}.csv").read_text(), table
    assert set(apart.traffic["center"]) == {"SiteA", "SiteB"} and (apart.traffic["sent"] > 100_000).all() and not len(apart.faults)
    left = sorted(path.name for path in (apart.folder / "federation").iterdir())
    assert left == ["logs"], "keys, images and states of the sites are gone"
    log = (apart.folder / "federation" / "logs" / "SiteA.log").read_text()
    assert "cannot reach" not in log and "connected" in log
