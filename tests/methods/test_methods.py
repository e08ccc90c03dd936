"""Every method of the comparison: same start, nothing but what it declares leaves a centre, killed and resumed it ends bit-identical."""

import copy
import math

import pytest
import torch

from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.servers import ROUND_METRICS, Server, Update
from vfmgl_lib.methods import harmofl
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.methods.registry import METHODS, new_server
from vfmgl_lib.methods.settings import load_settings, with_overrides
from vfmgl_lib.models.students import part_names

ORDER = ["local", "fedavg", "fedavg_ft", "fedprox", "harmofl", "metafed", "fedbn", "ditto", "fedrep", "fedper", "proxyfl", "pooled"]
ORDER += ["frozen_probe", "logit_kd", "hgkt", "fedavg_hgkt", "hgkt_beta0", "hgkt_random", "hgkt_kd", "vfmgl_task", "vfmgl_random", "vfmgl"]
KEEP_THEIR_OWN = ("fedavg_ft", "ditto", "proxyfl")  # what the server sends does not become the centre's own model after a round


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _plain(client):
    """The student's state without a wrapper's prefix and the wrapper's own."""
    return {name.removeprefix("student."): t for name, t in client.student.state_dict().items() if name != harmofl.AMPLITUDE}


def _parameters(model):
    """A state without the statistics of batch normalisation, which are each centre's own."""
    return {name: t for name, t in model.items() if not name.endswith(("running_mean", "running_var"))}


def test_the_table_of_methods():
    assert list(METHODS) == ORDER
    assert len({method.title for method in METHODS.values()}) == len(METHODS) and all(method.source for method in METHODS.values())


@pytest.mark.parametrize(
    ("method", "matched"),
    [
        ("local", {"rounds": 4, "updates": 12, "hgkt_updates": 8}),
        ("ditto", {"rounds": 4, "updates": 12, "hgkt_updates": 8}),
        ("metafed", {"rounds": 4, "updates": 12}),
        ("pooled", {"rounds": 4}),
        ("hgkt", {"rounds": 4, "hgkt_updates": 4}),
        ("hgkt_beta0", {"rounds": 4, "hgkt_updates": 4}),
        ("fedavg_hgkt", {"rounds": 4, "hgkt_updates": 4}),
        ("hgkt_kd", {"rounds": 4, "updates": 4}),
        ("vfmgl_task", {"rounds": 4, "updates": 4}),
        ("vfmgl_random", {"rounds": 4, "updates": 4}),
        ("vfmgl", {"rounds": 4, "updates": 4}),
        ("frozen_probe", {"rounds": 1, "updates": 1, "hgkt_updates": 1}),
    ],
)
def test_a_budget_is_named_only_where_it_holds(method, matched):
    """HGKT's two updates are never VFMGL's three, a round of pooled training is all centres', MetaFed is not ended on the way."""
    settings = load_settings("nuclei", method=method, federation__rounds=4)
    assert report_rounds(settings) == matched
    unmatched = load_settings("nuclei", method=method, federation__rounds=4, federation__match_updates=False)
    assert report_rounds(unmatched) == {"rounds": matched["rounds"]}, "nothing else was matched"
    updates = max(METHODS[method].updates, 1)
    for budget, wanted in {"updates": 3, "hgkt_updates": 2}.items():
        assert method == "frozen_probe" or matched.get(budget, wanted * 4 / updates) * updates == wanted * 4


def test_updates_matched_by_epochs_take_as_many_rounds(federation):
    whole, own = {"rounds": 4, "epochs": 4}, {"rounds": 4}
    wanted = {"fedavg": (3, {"epochs": 4}), "metafed": (3, {"epochs": 4}), "pooled": (1, own), "hgkt": (1, own), "hgkt_beta0": (1, own)}
    wanted |= {"hgkt_kd": (1, whole), "vfmgl_random": (1, whole), "vfmgl": (1, whole), "frozen_probe": (1, {"rounds": 1, "epochs": 1})}
    for method, (factor, budgets) in wanted.items():
        plain = load_settings("nuclei", "paper", method=method, federation__rounds=4, federation__match_by="epochs")
        settings = with_overrides(plain)
        assert settings.federation.epochs == factor * settings.federation.local_epochs and with_overrides(settings) == settings
        assert report_rounds(settings) == report_rounds(plain) == budgets
        said = settings.deviations().set_index("setting")["here"].to_dict()
        assert said.get("federation.epoch_factor", 1) == factor
        unmatched = plain.model_copy(update={"federation": plain.federation.model_copy(update={"match_updates": False})})
        assert with_overrides(unmatched).federation.epoch_factor == 1 and set(report_rounds(unmatched)) == {"rounds"}
    clients, server = federation("nuclei", "fedavg", federation__match_by="epochs")
    plain, _ = federation("nuclei", "fedavg", federation__local_epochs=3)
    one, other = (client.run_round(1, server.message(client.center, 1)) for client in (clients[0], plain[0]))
    assert _equal(one.state, other.state) and clients[0].batch_count(1) == 3 * len(clients[0].batches(1, "I"))


def test_a_key_has_the_running_methods_settings_only():
    def key(method, **changes):
        return load_settings("nuclei", method=method, **changes).key()

    for part, users in {"fedprox__mu": ["fedprox"], "frozen_probe__inverse_regularization": ["frozen_probe", "logit_kd"]}.items():
        changed = [method for method in METHODS if key(method) != key(method, **{f"comparators__{part}": 0.5})]
        assert changed == users
    assert key("fedavg") == key("fedavg", comparison__seeds=2)
    assert key("fedavg") != key("fedavg", data__split={"train": 0.6, "seed": 3}) != key("fedavg", data__split={"train": 0.6, "seed": 4})


def test_every_method_starts_from_equal_student_weights(federation):
    start = _plain(federation("nuclei", "vfmgl")[0][0])
    for method in METHODS.keys() - {"frozen_probe"}:
        clients, _ = federation("nuclei", method)
        assert all(_equal(_plain(client), start) for client in clients), method


@pytest.mark.parametrize(
    ("task", "method"),
    [("nuclei", method) for method in ORDER] + [("endometrial", method) for method in ("fedavg", "metafed", "frozen_probe", "logit_kd")],
)
def test_only_what_is_declared_leaves_a_centre_and_a_resumed_run_ends_bit_identical(federation, received, method, task):
    # At the threshold 0 MetaFed's flags are on from the first score above 0, so that they are part of what is resumed.
    few = {"optimizer__lr": 0.005, "federation__rounds": 2, "comparators__metafed__threshold": 0.0}
    clients, server = federation(task, method, **few)
    # Stage II begins in round 2 and MetaFed's common rounds end with the third: what either leaves behind is part of what is resumed.
    last = {"frozen_probe": 1, "metafed": 4}.get(method, 3)
    saved_after = max(last - 1, 1)
    declared = harmofl.declared_aggregates(clients[0].settings) if method == "harmofl" else {}
    resumed, updates = None, received(server)
    for done in run_rounds(clients, server, last):
        trained = clients[:1] if method == "pooled" else clients
        assert all((update.state, update.metrics) == ({}, {}) for update in updates[len(trained) :])
        for client, update in zip(trained, updates, strict=False):
            samples = sum(len(one.data) for one in clients) if method == "pooled" else len(client.data)
            assert set(vars(update)) == {"center", "state", "samples", "metrics", "aggregates"}
            own = client.student.state_dict() if METHODS[method].switches.sends else {}
            assert {name: tuple(t.shape) for name, t in update.aggregates.items()} == declared
            assert update.state.keys() == own.keys() - declared.keys() - part_names(client.student, METHODS[method].switches.keeps)
            assert all(update.state[name].shape == own[name].shape for name in update.state)
            assert update.samples == samples
            assert tuple(update.metrics) == ROUND_METRICS and all(isinstance(value, float) for value in update.metrics.values())
            assert math.isfinite(update.metrics["task_loss"])
            for row in client.log.rounds:
                assert row["batches"] > 0 and row["samples"] == samples
        updates.clear()
        if done.shared is not None and METHODS[method].switches.adopts and method not in KEEP_THEIR_OWN:
            adopted = _parameters(done.shared)
            assert all(torch.equal(client.student.state_dict()[name], adopted[name]) for client in clients for name in adopted)
            assert not any(_equal(client.student.state_dict(), done.shared) for client in clients)
        if done.number == saved_after:
            saved = copy.deepcopy([(c.state_dict(), c.student.state_dict(), c.stage_one_state) for c in clients] + [server.state_dict()])
            resumed = done.number
    others, other_server = federation(task, method, **few)
    other_server.load_state_dict(saved.pop())
    for client, parts in zip(others, saved, strict=True):
        client.load_state_dict(*parts)
    list(run_rounds(others, other_server, last, start=resumed))
    assert _equal(server.state_dict(), other_server.state_dict())
    for one, other in zip(clients, others, strict=True):
        assert _equal(one.student.state_dict(), other.student.state_dict()) and _equal(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("method", ["local", "fedavg", "harmofl", "metafed"])
def test_what_is_not_declared_is_refused_by_name(federation, method):
    clients, server = federation("nuclei", method)
    state, aggregates = clients[0].sent_state()
    server.receive(Update("A", state, 1, {}, aggregates))
    with pytest.raises(ValueError, match="centre A: state images must be nothing: it is not declared, got"):
        server.receive(Update("A", state | {"images": torch.zeros(2)}, 1, {}, aggregates))
    with pytest.raises(ValueError, match="centre A: aggregate features must be nothing: it is not declared, got"):
        server.receive(Update("A", state, 1, {}, aggregates | {"features": torch.zeros(5)}))


def test_a_declared_aggregate_has_its_declared_size(federation):
    clients, server = federation("nuclei", "harmofl")
    state, _ = clients[0].sent_state()
    with pytest.raises(ValueError, match=r"centre A: aggregate amplitude must be \(3, 1, 1\), got \(3, 9, 9\)"):
        server.receive(Update("A", state, 1, {}, {"amplitude": torch.zeros(3, 9, 9)}))
    with pytest.raises(ValueError, match=r"centre A: aggregate amplitude must be \(3, 1, 1\), got nothing"):
        server.receive(Update("A", state, 1, {}))


def test_fedavg_is_the_mean_by_samples_and_is_adopted_with_bn_statistics(federation, received):
    clients, server = federation("nuclei", "fedavg", batch_norm="running")
    clients[1].data.table = clients[1].data.table.iloc[:3]  # 4 and 3 samples
    updates = received(server)
    list(run_rounds(clients, server, 1))
    one, other = (update.state for update in updates)
    assert [update.samples for update in updates] == [4, 3]
    for name in ("head.weight", "bottleneck.1.running_mean", "bottleneck.1.running_var"):
        by_hand = (4 * one[name].double() + 3 * other[name].double()) / 7
        assert not torch.equal(one[name], other[name])
        for client in clients:
            torch.testing.assert_close(client.student.state_dict()[name].double(), by_hand, rtol=1e-6, atol=1e-8)
    before = copy.deepcopy(clients[0].student.state_dict())
    clients[0].run_round(2, server.message(clients[0].center, 2))
    assert not _equal(clients[0].student.state_dict(), before)


@pytest.mark.parametrize("method", ["fedavg", "fedprox", "harmofl"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_momenta_outlive_the_adoption(federation, method, name):
    clients, server = federation("nuclei", method, optimizer__name=name)
    list(run_rounds(clients, server, 1))
    client = clients[0]
    momenta = {key: tensor.clone() for key, tensor in client.state_dict().items() if key.startswith("optimizer.")}
    assert any(tensor.abs().sum() > 0 for tensor in momenta.values())
    client.begin_round(2, server.message(client.center, 2))
    assert _equal({key: client.state_dict()[key] for key in momenta}, momenta)
    weights = [parameter for group in client.optimizer.param_groups for parameter in group["params"]]
    assert {id(w) for w in weights} == {id(p) for p in client.student.parameters()}, "and move the adopted weights"


def test_a_method_without_federation_gets_no_message(federation, received):
    for method in ("local", "logit_kd", "frozen_probe"):
        clients, server = federation("nuclei", method)
        assert type(server) is Server and server.message("SiteA", 2) is None
        updates = received(server)
        (done,) = run_rounds(clients, server, 1)
        assert done.shared is None and updates and all(update.state == {} for update in updates)


def test_the_initial_state_is_sent_only_where_it_is_adopted(federation):
    for method, sent in (("fedavg", True), ("fedprox", True), ("harmofl", True), ("vfmgl", False), ("hgkt", False)):
        clients, server = federation("nuclei", method)
        assert (server.message("SiteA", 1) is not None) == sent and server.message("SiteA", 2) is not None
        again = new_server(clients[0].settings, ["SiteA", "SiteB"], clients[0].student)
        assert again.weights == ("uniform" if method == "harmofl" else "samples")
