"""mRMR: the order of selection equals pymrmr's, whose printing and crashes stay in a process of their own."""

import importlib

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from vfmgl_lib.interpretation import mrmr, pymrmr_orders, shortfall

module = importlib.import_module("vfmgl_lib.interpretation.mrmr")  # the package's own `mrmr` is the function


def table(generator, samples, features, classes=2):
    """A random table whose features tell something about the labels and about each other; the labels are not balanced."""
    labels = (generator.random(samples) ** 1.5 * classes).astype(int)
    common = generator.integers(-1, 2, samples)
    columns = []
    for _ in range(features):
        column = generator.integers(-1, generator.integers(1, 3), samples)
        column = np.where(generator.random(samples) < generator.uniform(0, 0.5), labels % 3 - 1, column)
        columns.append(np.where(generator.random(samples) < generator.uniform(0, 0.5), common, column))
    return np.stack(columns, axis=1), labels


def information(features, variable):
    """I of every feature and one variable, both of the levels -1, 0 and 1."""
    members, of_variable = (module._bits(np.stack([values == level for level in (-1, 0, 1)])) for values in (features, variable[:, None]))
    return module._information(members, of_variable, len(features))


def test_order_equals_pymrmr_on_random_tables():
    generator = np.random.default_rng(0)
    tables = []
    # Sample counts without small divisors and free labels: no two scores are equal, so there is one right order.
    for trial in range(120):
        samples, count = int(generator.choice([211, 307, 499])), int(generator.integers(1, 25))
        features, labels = table(generator, samples, count, classes=2 + trial % 3)
        tables.append((features, labels, int(generator.integers(1, count + 1)), ("MIQ", "MID")[trial % 2]))
    features, labels, *_ = tables[-1]
    constant = np.full((len(labels), 1), 1)
    tables += [(np.concatenate([constant, features], axis=1), labels, features.shape[1] + 1, "MIQ"), (constant, labels, 1, "MID")]
    expected = pymrmr_orders([(features + 1, *others) for features, *others in tables])
    different = [i for i, (case, order) in enumerate(zip(tables, expected, strict=True)) if mrmr(*case).tolist() != order.tolist()]
    assert not different
    assert len({tuple(order) for order in expected}) > 100, "the tables must ask different questions"


def test_the_engines_agree():
    features, labels = table(np.random.default_rng(1), 307, 12)
    assert mrmr(features, labels, 12, engine="pymrmr").tolist() == mrmr(features, labels, 12).tolist()


def test_hand_computed():
    # With h the entropy of a coin: a is right in 6 of 8 samples, I(a; y) = 1 − h(1/4) = 0.1887. b is a with one more sample wrong, c as
    # often wrong as b but elsewhere: I(b; y) = I(c; y) = h(3/8) − h(1/4)/2 − 1/2 = 0.0488, I(a; b) = h(3/8) − h(1/4)/2 = 0.5488, and
    # I(a; c) = 0.0488 once more. Relevance does not part b and c; redundancy does, against the column's index.
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    a = [0, 0, 0, 1, 1, 1, 1, 0]
    b = [0, 0, 1, 1, 1, 1, 1, 0]
    c = [0, 1, 0, 0, 0, 1, 1, 0]
    features = np.array([b, c, a]).T
    assert information(features, labels) == pytest.approx([0.0487949, 0.0487949, 0.1887219], abs=1e-7)
    assert information(features, np.array(a)) == pytest.approx([0.5487949, 0.0487949, 1.0], abs=1e-7)
    for scheme in ("MIQ", "MID"):
        assert mrmr(features, labels, 3, scheme).tolist() == [2, 1, 0]


@pytest.mark.parametrize("samples", [2, 63, 64, 65, 300, 70_000])
def test_information_is_that_of_scikit_learn(samples):
    features, _ = table(np.random.default_rng(2), samples, 9)
    features[:, 0] = 1
    for variable in features.T:
        expected = [mutual_info_score(column, variable) / np.log(2) for column in features.T]
        assert information(features, variable) == pytest.approx(expected, abs=1e-12)


def test_only_the_partition_of_the_samples_matters():
    features, labels = table(np.random.default_rng(3), 211, 20)
    relabelled = (features + 2) % 3 - 1
    for scheme in ("MIQ", "MID"):
        expected = mrmr(features, labels, 20, scheme).tolist()
        assert mrmr(relabelled, -1_000_003 * labels + 5, 20, scheme).tolist() == expected
        assert mrmr(relabelled.astype(float), labels.astype(bool), 20, scheme).tolist() == expected
        assert sorted(expected) == list(range(20))


@pytest.mark.parametrize("scheme", ["MIQ", "MID"])
def test_ties_go_to_the_lower_index(scheme):
    generator = np.random.default_rng(4)
    for _ in range(30):
        features, labels = table(generator, 211, 6, classes=3)
        # Each column thrice, the copies with other names for the values: the same information from sums in another order.
        copies = np.concatenate([features, -features, (features + 2) % 3 - 1], axis=1)
        order = mrmr(copies, labels, 18, scheme).tolist()
        for column in range(6):
            assert [c for c in order if c % 6 == column] == [column, column + 6, column + 12]


@pytest.mark.parametrize("scheme", ["MIQ", "MID"])
def test_a_weak_new_feature_comes_before_a_strong_copy(scheme):
    generator = np.random.default_rng(5)
    parts = generator.integers(0, 2, (1000, 2))
    labels = parts @ [1, 2]  # four classes, two independent bits of them
    copy, weak = (np.where(generator.random(1000) < wrong, 1 - part, part) for wrong, part in zip((0.02, 0.15), parts.T, strict=True))
    noise = generator.integers(-1, 2, (1000, 30))
    features = np.column_stack([noise[:, :15], copy, parts[:, 0], weak, noise[:, 15:]])
    relevance = [mutual_info_score(column, labels) for column in features.T]
    assert np.argsort(relevance)[::-1][:3].tolist() == [16, 15, 17]
    assert mrmr(features, labels, 2, scheme).tolist() == [16, 17]


def test_constant_features_come_last():
    features, labels = table(np.random.default_rng(6), 211, 3)
    features = np.concatenate([np.full((211, 1), 1), features], axis=1)
    assert mrmr(features, labels, 4)[-1] == 0
    assert mrmr(features[:, :1], labels, 1).tolist() == [0]


GOOD = np.array([[0, 1], [1, 1], [0, -1]])


@pytest.mark.parametrize("engine", ["fast", "pymrmr"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((0, 2), int), [], 1), r"features must be \(n, d\) .* got \(0, 2\)"),
        ((np.zeros((3, 0), int), [0, 1, 0], 1), r"got \(3, 0\)"),
        (([0, 1, 0], [0, 1, 0], 1), r"features must be \(n, d\) .* got \(3,\)"),
        ((GOOD, [0, 1], 1), r"labels must be \(n,\) = \(3,\) .* got \(2,\)"),
        ((GOOD, [[0], [1], [0]], 1), r"labels must be \(n,\) = \(3,\) .* got \(3, 1\)"),
        ((GOOD, [0, 1, 0], 0), "k must be an integer from 1 to d = 2, got 0"),
        ((GOOD, [0, 1, 0], 3), "k must be an integer from 1 to d = 2, got 3"),
        ((GOOD, [0, 1, 0], 1.0), r"got 1\.0"),
        ((GOOD, [0, 1, 0], 1, "MIX"), "scheme must be one of MIQ, MID, got 'MIX'"),
        ((GOOD, [4, 4, 4], 1), "labels must hold at least two classes, got 4 in all 3 samples"),
        ((GOOD + 0.5, [0, 1, 0], 1), r"features must be -1, 0 or 1, got 0\.5 at \(0, 0\) \(6 such values\): discretise"),
        ((GOOD * 2, [0, 1, 0], 1), r"features must be -1, 0 or 1, got 2 at \(0, 1\) \(4 such"),
        (([[0, 1], [1, np.nan], [1, 1]], [0, 1, 0], 1), r"features must be -1, 0 or 1, got nan at \(1, 1\) \(1 such"),
        ((GOOD, [0, np.inf, 1], 1), "labels must be whole numbers, got dtype float64"),
        ((GOOD.astype(str), [0, 1, 0], 1), r"features must be -1, 0 or 1, got 0 at \(0, 0\)"),
    ],
)
def test_errors_name_the_value(engine, arguments, message):
    with pytest.raises(ValueError, match=message):
        mrmr(*arguments, engine=engine)


def test_unknown_engine():
    with pytest.raises(ValueError, match="engine must be one of fast, pymrmr, got 'slow'"):
        mrmr(GOOD, [0, 1, 0], 1, engine="slow")


def test_pymrmr_failures_stay_outside(monkeypatch, capfd):
    with pytest.raises(RuntimeError, match=r"must return 3 different names from f0 to f1, got .*class"):
        pymrmr_orders([(GOOD, np.array([0, 1, 0]), 3, "MIQ")])  # more than there are: it appends the class
    with pytest.raises(RuntimeError, match="exit status -"):
        pymrmr_orders([(GOOD, np.array([0, 1, 0]), 0, "MIQ")])  # none: it dies of a signal
    monkeypatch.setattr(module, "_PYMRMR_SCRIPT", "raise SystemExit('no such package')")
    with pytest.raises(RuntimeError, match=r"exit status 1 .*no such package"):
        mrmr(GOOD, [0, 1, 0], 1, engine="pymrmr")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("scheme", ["MIQ", "MID"])
def test_both_engines_choose_the_best_at_every_step_and_a_wrong_order_does_not(scheme):
    features, labels = table(np.random.default_rng(8), 120, 12)
    features = np.concatenate([features, features[:, ::-1]], axis=1)  # every feature twice: ties at every step
    for engine in ("fast", "pymrmr"):
        order = mrmr(features, labels, 8, scheme, engine)
        assert np.abs(shortfall(features, labels, order, scheme)).max() < 1e-6, engine
    assert shortfall(features, labels, order[[1, 0, *range(2, 8)]], scheme)[0] > 1e-3
    swapped = order.copy()
    swapped[[4, 7]] = swapped[[7, 4]]
    assert shortfall(features, labels, swapped, scheme).max() > 1e-4
