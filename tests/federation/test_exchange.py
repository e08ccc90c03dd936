"""What an update is on its way: number formats, withheld counts, clipping, noise, and what the server makes of it."""

import math

import pytest
import torch

from vfmgl_lib import config
from vfmgl_lib.config import ConfigError
from vfmgl_lib.config.sections import ExchangeSettings
from vfmgl_lib.federation.exchange import SMALLEST_VARIANCE, epsilon, in_words, incoming, outgoing
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.servers import ROUND_METRICS, Update, UpdateError
from vfmgl_lib.methods.settings import load_settings

SIX_SIGMA = 6  # a correct noise leaves such a bound once in 5e8 runs
HALF = 2.0**-11  # relative rounding error of float16 in its normal range


def exchange(**values) -> ExchangeSettings:
    return ExchangeSettings(**{"number_format": "float32", "share_counts": True, "clip": 0, "noise": 0} | values)


def update_of(state, aggregates=None, metrics=None) -> Update:
    return Update("A", state, 7, metrics or {"task_loss": 0.5, "kept_share": 1.0}, aggregates or {})


def model(seed: int, size: int = 500) -> dict:
    """A parameter, BN statistics and a counter."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(size, 3, generator=generator),
        "bn.running_mean": torch.randn(size, generator=generator),
        "bn.running_var": torch.rand(size, generator=generator) + 0.5,
        "bn.num_batches_tracked": torch.tensor(2**20 + seed),
    }


def moved(state: dict, length: float, seed: int = 1) -> dict:
    """The state with a change of this length in its floating-point tensors."""
    generator = torch.Generator().manual_seed(seed)
    steps = {name: torch.randn(t.shape, generator=generator) for name, t in state.items() if t.is_floating_point()}
    scale = length / math.sqrt(sum(float(step.square().sum()) for step in steps.values()))
    return {name: tensor + steps[name] * scale if name in steps else tensor + 3 for name, tensor in state.items()}


def change_length(after: dict, before: dict) -> float:
    return math.sqrt(sum(float((after[n].double() - before[n].double()).square().sum()) for n in after if after[n].is_floating_point()))


def test_the_plain_exchange_changes_nothing():
    before, sent = model(0), update_of(model(1), {"amplitude": torch.ones(3)})
    assert outgoing(sent, before, before, exchange()) is sent
    assert incoming(sent, before, exchange()) is sent


def test_float16_is_half_as_large_and_within_its_rounding_error():
    state = model(1)
    halved = outgoing(update_of(state), state, None, exchange(number_format="float16"))
    assert all(tensor.dtype == (torch.float16 if tensor.is_floating_point() else torch.int64) for tensor in halved.state.values())
    back = incoming(halved, None, exchange(number_format="float16"))
    for name, tensor in state.items():
        assert back.state[name].dtype == tensor.dtype
        if tensor.is_floating_point():
            assert ((back.state[name] - tensor).abs() <= HALF * tensor.abs() + 2**-25).all()
            assert not torch.equal(back.state[name], tensor)
    assert torch.equal(back.state["bn.num_batches_tracked"], state["bn.num_batches_tracked"])


def test_float16_change_is_as_exact_as_the_change_is_small():
    settings, received = exchange(number_format="float16_change"), model(0)
    trained = moved(received, 0.1)
    back = incoming(outgoing(update_of(trained), received, received, settings), received, settings)
    for name, tensor in trained.items():
        if tensor.is_floating_point():
            change = (tensor - received[name]).abs()
            # Rounding of the change, and that of the sum in float32.
            assert ((back.state[name] - tensor).abs() <= HALF * change + 2**-25 + 2**-23 * tensor.abs()).all()
    assert torch.equal(back.state["bn.num_batches_tracked"], trained["bn.num_batches_tracked"]), "a counter is sent whole"
    plain = exchange(number_format="float16")
    rounded = incoming(outgoing(update_of(trained), received, received, plain), received, plain)
    assert change_length(back.state, trained) < 0.05 * change_length(rounded.state, trained)


def test_without_a_message_float16_change_sends_the_model():
    settings, state = exchange(number_format="float16_change"), model(1)
    sent = outgoing(update_of(state), model(0), None, settings)
    assert torch.equal(sent.state["weight"], state["weight"].half())
    assert torch.equal(incoming(sent, None, settings).state["weight"], state["weight"].half().float())


@pytest.mark.parametrize(
    ("number_format", "received", "message"),
    [
        ("float16", 0.0, "centre A: weight reaches 7e\\+04, more than float16 holds; use exchange.number_format float32"),
        ("float16_change", -4e4, "centre A: the change of weight reaches 1.1e\\+05, more than float16 holds"),
    ],
)
def test_what_float16_does_not_hold_is_named(number_format, received, message):
    settings, base = exchange(number_format=number_format), {"weight": torch.full((2,), received)}
    with pytest.raises(ValueError, match=message):
        outgoing(update_of({"weight": torch.tensor([1.0, 7e4])}), base, base, settings)
    fits = outgoing(update_of({"weight": torch.tensor([1.0, 7e4])}), base, {"weight": torch.full((2,), 3e4)}, exchange())
    assert fits.state["weight"][1] == 7e4


def test_values_that_are_not_finite_stay_so_for_the_server_to_refuse():
    settings = exchange(number_format="float16")
    back = incoming(outgoing(update_of({"weight": torch.tensor([1.0, math.nan])}), {}, None, settings), None, settings)
    assert back.state["weight"].isnan().tolist() == [False, True]


def test_a_variance_does_not_fall_below_zero_by_rounding():
    received = {"bn.running_var": torch.tensor([99.97, 1.0])}
    settings = exchange(number_format="float16_change")
    sent = outgoing(update_of({"bn.running_var": torch.tensor([0.001, 0.5])}), received, received, settings)
    assert (sent.state["bn.running_var"].float() + received["bn.running_var"])[0] < 0, "the case that is meant"
    assert incoming(sent, received, settings).state["bn.running_var"].tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4, 3), "update of centre A: weight must be torch.float16 on its way, got torch.float32"),
        (torch.zeros(1, dtype=torch.float16), r"update of centre A: the change of weight must be \(4, 3\), got \(1,\)"),
        (torch.zeros(5, 3, dtype=torch.float16), r"update of centre A: the change of weight must be \(4, 3\), got \(5, 3\)"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_not_stretched(tensor, message):
    with pytest.raises(UpdateError, match=message):
        incoming(update_of({"weight": tensor}), {"weight": torch.ones(4, 3)}, exchange(number_format="float16_change"))


def test_an_unfit_change_costs_its_centre_the_round_and_no_other(federation, monkeypatch):
    clients, server = federation("nuclei", "fedavg", exchange__number_format="float16_change")
    run_round = clients[0].run_round

    def cut(*arguments):
        update = run_round(*arguments)
        update.state["head.bias"] = update.state["head.bias"][:1]
        return update

    monkeypatch.setattr(clients[0], "run_round", cut)
    done = next(iter(run_rounds(clients, server, 1, quorum=0.5)))
    assert done.centers == [clients[1].center]
    assert [(fault.center, fault.kind) for fault in done.faults] == [(clients[0].center, "refused")]


@pytest.mark.parametrize("length", [0.5, 40.0])
def test_clip_shortens_the_whole_change_to_its_length(length):
    """The whole: one length over parameters, BN statistics and aggregates together, all shortened alike."""
    before = model(0) | {"amplitude": torch.full((3,), 2.0)}
    after = moved(before, 20.0)
    sent = update_of({name: tensor for name, tensor in after.items() if name != "amplitude"}, {"amplitude": after["amplitude"]})
    clipped = outgoing(sent, before, before, exchange(clip=length))
    result = clipped.state | clipped.aggregates
    assert clipped.state.keys() == sent.state.keys() and clipped.aggregates.keys() == {"amplitude"}
    assert change_length(result, before) == pytest.approx(min(length, 20.0), rel=1e-5)
    scale = min(1.0, length / 20)
    for name in ("weight", "bn.running_mean", "bn.running_var", "amplitude"):
        assert torch.allclose(result[name] - before[name], (after[name] - before[name]) * scale, atol=1e-6), name
    assert torch.equal(result["bn.num_batches_tracked"], after["bn.num_batches_tracked"])


def test_clip_keeps_a_small_variance_as_it_is():
    """A channel that is always zero has a variance below that which noise is cut at."""
    before = {"bn.running_var": torch.tensor([1e-8, 1.0])}
    sent = outgoing(update_of({"bn.running_var": torch.tensor([1e-9, 0.9])}), before, before, exchange(clip=1.0))
    assert torch.allclose(sent.state["bn.running_var"], torch.tensor([1e-9, 0.9]), rtol=1e-6, atol=0)


def test_an_aggregate_without_a_reference_counts_from_zero():
    sent = outgoing(update_of({}, {"amplitude": torch.full((4,), 5.0)}), {}, None, exchange(clip=1.0))
    assert sent.aggregates["amplitude"].tolist() == [0.5] * 4


def test_nothing_moved_or_sent_is_no_division_by_zero():
    before = model(0)
    sent = outgoing(update_of(before), before, before, exchange(clip=1.0))
    assert all(torch.equal(sent.state[name], before[name]) for name in before)
    assert outgoing(update_of({}), before, before, exchange(clip=1.0, noise=1.0)).state == {}


@pytest.mark.parametrize(("clip", "noise"), [(2.0, 0.5), (0.1, 3.0)])
def test_noise_has_the_stated_deviation_on_every_tensor(clip, noise):
    size, sd = 120_000, clip * noise
    before = {"weight": torch.zeros(size), "bn.running_mean": torch.full((size,), 4.0), "bn.running_var": torch.full((size,), 100.0)}
    settings = exchange(clip=clip, noise=noise)
    sent, again = (outgoing(update_of(before, {"amplitude": torch.zeros(size)}), before, before, settings) for _ in range(2))
    drawn = {name: (tensor - before.get(name, 0)).double() for name, tensor in (sent.state | sent.aggregates).items()}
    for name, values in drawn.items():
        # The deviation of a sample's mean is sd / sqrt(n), that of its SD sd / sqrt(2 n); float32 adds 4e-6 of 100 at most.
        assert abs(values.mean()) <= SIX_SIGMA * sd / math.sqrt(size) + 1e-5, name
        assert abs(values.std() - sd) <= SIX_SIGMA * sd / math.sqrt(2 * size) + 1e-5, name
        beyond = (values.abs() > 2 * sd).double().mean()  # 4.55 % of a normal distribution
        assert abs(beyond - 0.0455) <= SIX_SIGMA * math.sqrt(0.0455 * 0.9545 / size), name
    pairs = [("weight", "bn.running_mean"), ("weight", "amplitude"), ("bn.running_mean", "bn.running_var")]
    repeated = [(drawn["weight"], again.state["weight"].double()), *((drawn[one], drawn[other]) for one, other in pairs)]
    for one, other in repeated:
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) <= SIX_SIGMA / math.sqrt(size), "drawn anew every time"


def test_a_seed_does_not_give_the_noise_away():
    before, drawn = model(0), []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(outgoing(update_of(before), before, before, exchange(clip=1.0, noise=1.0)).state["weight"])
    assert not torch.equal(*drawn)


def test_variances_stay_positive_under_noise():
    before = {"bn.running_var": torch.full((1000,), 0.01)}
    for number_format in ("float32", "float16", "float16_change"):
        settings = exchange(clip=1.0, noise=1.0, number_format=number_format)
        arrived = incoming(outgoing(update_of(before), before, before, settings), before, settings).state["bn.running_var"]
        assert (arrived >= 0).all() and (arrived <= 2 * SMALLEST_VARIANCE).double().mean() > 0.3, "the negative third was cut"


def test_epsilon_by_hand_and_monotone():
    # One round, noise 2: rho = 2 / 4 = 0.5; epsilon = 0.5 + 2 sqrt(0.5 ln 100) = 0.5 + 2 * 1.517427.
    assert epsilon(2.0, 1, delta=0.01) == pytest.approx(3.534854, abs=1e-5)
    # Ten rounds, noise 4, delta 1e-5: rho = 1.25; 1.25 + 2 sqrt(1.25 * 11.512925) = 1.25 + 2 * 3.793568.
    assert epsilon(4.0, 10) == pytest.approx(8.837136, abs=1e-5)
    assert epsilon(0, 5) == math.inf
    noises = [epsilon(noise, 3) for noise in (0.01, 0.1, 1, 10, 100)]
    assert noises == sorted(noises, reverse=True) and len(set(noises)) == 5
    rounds = [epsilon(1.0, number) for number in (1, 2, 10)]
    assert rounds == sorted(set(rounds))
    assert epsilon(1.0, 1, delta=1e-7) > epsilon(1.0, 1, delta=1e-3)


def test_protection_in_words():
    assert in_words(exchange(), 3) == "float32"
    noisy = exchange(number_format="float16_change", share_counts=False, clip=0.5, noise=4)
    expected = "float16_change, counts and losses withheld, changes clipped to 0.5, noise 4: epsilon 8.84 after 10 rounds (delta 1e-5)"
    assert in_words(noisy, 10) == expected


def test_withheld_counts_leave_neither_samples_nor_losses_nor_counters():
    state = model(1)
    sent = outgoing(update_of(state), state, None, exchange(share_counts=False))
    assert (sent.samples, sent.metrics) == (0, {})
    assert sent.state["bn.num_batches_tracked"] == 0 and state["bn.num_batches_tracked"] == 2**20 + 1
    assert all(torch.equal(sent.state[name], state[name]) for name in state if state[name].is_floating_point())


WITHHELD = {"exchange__share_counts": False, "federation__weights": "uniform"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"exchange__share_counts": False}, "without the numbers of samples federation.weights must be uniform, got samples"),
        (WITHHELD | {"comparators__harmofl__weights": "samples"}, "comparators.harmofl.weights must be uniform, got samples"),
        (WITHHELD | {"exchange__noise": 1.0}, "noise protects nothing without exchange.clip"),
        ({"exchange__noise": 1.0, "exchange__clip": 1.0}, "set exchange.share_counts to false"),
        ({"exchange__number_format": "float8"}, "exchange.number_format: Input should be 'float32', 'float16' or 'float16_change'"),
        ({"exchange__clip": -1.0}, "exchange.clip: .*greater than or equal to 0, got -1.0"),
    ],
)
def test_settings_that_protect_nothing_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_settings("nuclei", "smoke", **overrides)


def test_only_another_exchange_is_part_of_a_studys_key(monkeypatch):
    """Studies from before there was an exchange keep their names."""
    hashed, dumps = [], config.json.dumps
    monkeypatch.setattr(config.json, "dumps", lambda values, **options: hashed.append(values) or dumps(values, **options))
    plain = load_settings("nuclei", "smoke")
    keys = {plain.key("data")}
    assert "exchange" not in hashed[0][1] and "federation" in hashed[0][1]
    assert load_settings("nuclei", "smoke", exchange__clip=0).key("data") in keys
    others = [{"number_format": "float16"}, {"number_format": "float16_change"}, {"clip": 2.0}]
    for values in others:
        keys.add(load_settings("nuclei", "smoke", **{f"exchange__{name}": value for name, value in values.items()}).key("data"))
        assert hashed[-1][1]["exchange"].items() >= values.items()
    assert len(keys) == 4


FORMATS = [
    {"exchange__number_format": "float16"},
    {"exchange__number_format": "float16_change"},
    WITHHELD,
    {"exchange__clip": 0.5},
    WITHHELD | {"exchange__clip": 0.01, "exchange__noise": 0.01, "exchange__number_format": "float16_change"},
]


@pytest.mark.parametrize("method", ["fedavg", "vfmgl", "harmofl", "metafed"])
@pytest.mark.parametrize("overrides", FORMATS, ids=["float16", "float16_change", "withheld", "clip", "everything"])
def test_rounds_run_in_every_format(federation, received, method, overrides):
    clients, server = federation("nuclei", method, **overrides)
    updates = received(server)
    done = list(run_rounds(clients, server, 2))
    assert [len(one.centers) for one in done] == [2, 2] and not any(one.faults for one in done)
    assert all(tensor.isfinite().all() for update in updates for tensor in update.state.values() if tensor.is_floating_point())
    assert all(tensor.dtype in (torch.float32, torch.int64) for update in updates for tensor in update.state.values())
    withheld = "exchange__share_counts" in overrides
    assert {update.samples for update in updates} == ({0} if withheld else {4})
    assert {tuple(update.metrics) for update in updates} == {() if withheld else ROUND_METRICS}
    counters = {int(t) for update in updates for name, t in update.state.items() if name.endswith("num_batches_tracked")}
    assert (counters == {0}) == withheld


@pytest.mark.parametrize(("number_format", "largest"), [("float16", 1.5e-3), ("float16_change", 3e-4)])
def test_fedavg_in_float16_stays_close_to_float32(federation, number_format, largest):
    """Relative to how far training has moved; measured 6e-4 and 1e-4."""
    states = []
    for chosen in ("float32", number_format):
        clients, server = federation("nuclei", "fedavg", exchange__number_format=chosen, optimizer__lr=0.005)
        initial = {name: tensor.clone() for name, tensor in server.state.items()}
        list(run_rounds(clients, server, 2))
        states.append(server.state)
    apart, way = change_length(states[1], states[0]), change_length(states[0], initial)
    assert 0 < apart < largest * way
