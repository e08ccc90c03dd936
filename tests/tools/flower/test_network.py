"""The server's rounds over centres that are silent, late, different or hostile: no network, no process, no training."""

import time

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from tests.tools.flower.centres import CENTERS, MODEL, SILENT, Centre, Grid, joined, rounds, settings
from vfmgl_lib.federation.rounds import QuorumError
from vfmgl_lib.federation.servers import Averaging, Update
from vfmgl_lib.tools.flower import deadlines
from vfmgl_lib.tools.flower.deadlines import Deadlines
from vfmgl_lib.tools.flower.members import MEMBERS, Members
from vfmgl_lib.tools.flower.messages import ABOUT, update_records
from vfmgl_lib.tools.flower.network import FederationError, network_rounds, wait_for_centers

pytestmark = pytest.mark.usefixtures("quick_network")


# A centre that says nothing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [("SiteA",), ("SiteB",), ("SiteC",), ("SiteA", "SiteB"), ("SiteB", "SiteC")])
def test_a_silent_centre_costs_no_other_one_its_answer(silent):
    study = settings(faults__quorum=0.3)
    grid = Grid(study)
    members = joined(grid, study)
    for name in silent:
        grid.centers[name].update = lambda: SILENT
    (done,) = rounds(grid, study, members=members)
    others = [name for name in CENTERS if name not in silent]
    assert done.centers == others and [(fault.center, fault.kind) for fault in done.faults] == [(name, "silent") for name in silent]
    assert torch.equal(done.shared["w"], torch.ones(3))


@pytest.mark.parametrize("away", CENTERS)
def test_a_centre_that_is_not_there_costs_no_other_one_its_answer(away):
    study = settings()
    grid = Grid(study)
    grid.away = {away}
    members = Members(study)
    (fault,) = wait_for_centers(grid, grid.nodes, members, 0.2)
    assert (fault.center, fault.kind) == (away, "silent") and members.joined == set(CENTERS) - {away}
    (done,) = rounds(grid, study, members=members)
    assert done.centers == [name for name in CENTERS if name != away]


@pytest.mark.parametrize("silent", CENTERS)
def test_a_silent_centre_hides_no_other_one_when_they_join(silent):
    study = settings()
    grid = Grid(study)
    grid.centers[silent].answer = lambda kind, content: SILENT
    members = Members(study)
    (fault,) = wait_for_centers(grid, grid.nodes, members, 0.2)
    assert (fault.center, fault.kind) == (silent, "silent") and members.joined == set(CENTERS) - {silent}


@pytest.mark.parametrize("slow", CENTERS)
def test_an_answer_that_arrives_in_part_holds_up_no_other_one(slow, monkeypatch):
    """Flower's pull waits for the rest of it; here for longer than the test."""
    study = settings()
    grid = Grid(study)
    members, pull = joined(grid, study), grid.pull_messages
    monkeypatch.setattr(grid, "pull_messages", lambda ids: time.sleep(30) if ids[0].startswith(slow) else pull(ids))
    started = time.monotonic()
    (done,) = rounds(grid, study, members=members)
    assert done.centers == [name for name in CENTERS if name != slow] and time.monotonic() - started < 10


def test_with_a_server_that_goes_from_centre_to_centre_each_has_a_deadline_of_its_own():
    class Sequential(Averaging):
        sequential = True

    study = settings(faults__quorum=0.5)
    grid = Grid(study)
    members = joined(grid, study)
    grid.centers["SiteA"].update = lambda: SILENT
    (done,) = network_rounds(grid, grid.nodes, Sequential(MODEL), 1, settings=study, members=members)
    assert done.centers == ["SiteB", "SiteC"]


def test_updates_count_in_the_server_s_order_whenever_they_come(tmp_path):
    study = settings(deadline=20)
    grid = Grid(study)
    members, handed = joined(grid, study), []
    first = grid.centers["SiteA"].update()
    grid.centers["SiteA"].update = lambda: SILENT
    server = Averaging(MODEL)
    receive = server.receive
    server.receive = lambda update: handed.append(update.center) or receive(update)
    arrived = []

    def waiting():
        if arrived == ["SiteB", "SiteC"]:  # the others are there and wait, on disk
            (aside,) = tmp_path.glob("aside-*")
            assert len(list(aside.iterdir())) == 2 and handed == []
            identifier = next(name for name in grid.answers if name.startswith("SiteA") and grid.answers[name] is SILENT)
            grid.answers[identifier] = first

    (done,) = network_rounds(
        *(grid, grid.nodes, server, 1),
        **{"settings": study, "members": members, "folder": tmp_path, "waiting": waiting},
        arrived=lambda center, number: arrived.append(center),
    )
    assert handed == done.centers == list(CENTERS) and arrived == ["SiteB", "SiteC", "SiteA"]
    assert list(tmp_path.iterdir()) == []


# A centre that differs -------------------------------------------------------------------------------------------------------------------

DIFFERENT = [
    ("center", "SiteX", "its center must be SiteB, it says 'SiteX'"),
    ("study", "0", "its study must be "),
    ("vfmgl_lib", "0.1.0", "its vfmgl_lib must be "),
    ("teacher", "other", "its teacher must be none, it says other; all need the same weights"),
    ("samples", 0, "its number of samples must be a whole number from 1 to 100000000, it says 0"),
    ("samples", 2**60, "its number of samples must be a whole number from 1 to 100000000"),
    ("samples", "many", "its number of samples must be a whole number"),
]


@pytest.mark.parametrize(("name", "value", "message"), DIFFERENT)
def test_a_centre_that_differs_is_not_let_in_and_the_others_go_on(name, value, message):
    study = settings()
    grid = Grid(study)
    grid.centers["SiteB"].identity[name] = value
    members = Members(study)
    (fault,) = wait_for_centers(grid, grid.nodes, members, 5)
    assert (fault.center, fault.kind) == ("SiteB", "refused") and message in fault.detail
    (done,) = rounds(grid, study, members=members)
    assert done.centers == ["SiteA", "SiteC"] and message in done.faults[0].detail
    assert "train" not in [kind for kind, _ in grid.centers["SiteB"].asked], "it gets no model"
    with pytest.raises(FederationError, match=f"2 of 3 centres can take part.*centre SiteB: {message}"):
        strict = settings(faults__quorum=1.0)
        wait_for_centers(grid, grid.nodes, Members(strict), 5)


@pytest.mark.parametrize(("name", "value", "message"), DIFFERENT)
def test_a_centre_that_comes_late_is_compared_before_its_first_round(name, value, message):
    study = settings(deadline=5)
    grid = Grid(study)
    grid.away = {"SiteB"}
    members = Members(study)
    wait_for_centers(grid, grid.nodes, members, 0.2)
    grid.away = set()
    grid.centers["SiteB"].identity[name] = value
    (done,) = rounds(grid, study, members=members)
    assert done.centers == ["SiteA", "SiteC"] and message in done.faults[0].detail
    grid.centers["SiteB"] = Centre("SiteB", study)  # as it should be
    (done,) = rounds(grid, study, members=members)
    assert done.centers == list(CENTERS) and grid.centers["SiteB"].asked == [("query", None), ("train", 1)]


def test_a_teacher_that_most_have_not_is_the_one_that_is_left_out_whoever_says_so_first():
    study = settings()
    grid = Grid(study)
    grid.centers["SiteA"].identity["teacher"] = "another"
    members = Members(study)
    (fault,) = wait_for_centers(grid, grid.nodes, members, 5)
    assert fault.center == "SiteA" and members.teacher == "none"
    two = Grid(study, CENTERS[:2])
    two.centers["SiteA"].identity["teacher"] = "another"
    with pytest.raises(FederationError, match="the centres' teachers differ, all need the same weights"):
        wait_for_centers(two, two.nodes, Members(study), 5)


def test_what_a_centre_declared_holds_over_a_restart_unless_the_coordinator_agrees(tmp_path):
    study = settings(faults__quorum=0.3)
    grid = Grid(study)
    members = Members(study, tmp_path / MEMBERS)
    assert wait_for_centers(grid, grid.nodes, members, 5) == []
    grid.centers["SiteB"].identity["samples"] = 4000
    grid.centers["SiteC"].identity["teacher"] = "new"
    again = Members(study, tmp_path / MEMBERS)
    faults = {fault.center: fault.detail for fault in wait_for_centers(grid, grid.nodes, again, 5)}
    assert faults.keys() == {"SiteB", "SiteC"} and "its teacher must be none" in faults["SiteC"]
    assert (
        f"declares 4000 samples and declared 10 before; if the coordinator agrees, take it out of {tmp_path / MEMBERS}" in faults["SiteB"]
    )
    (tmp_path / MEMBERS).write_text('{"teacher": "none", "samples": {"SiteA": 10}}')
    grid.centers["SiteC"].identity["teacher"] = "none"
    assert wait_for_centers(grid, grid.nodes, Members(study, tmp_path / MEMBERS), 5) == []
    (tmp_path / MEMBERS).write_text("{")
    with pytest.raises(ValueError, match=f"{MEMBERS}: damaged"):
        Members(study, tmp_path / MEMBERS)


def test_a_number_of_samples_may_not_change_from_round_to_round():
    study = settings()
    grid = Grid(study)
    members = joined(grid, study)
    grid.centers["SiteA"].samples, grid.centers["SiteA"].value = 2**60, 1e6
    (done,) = rounds(grid, study, members=members)
    assert done.centers == ["SiteB", "SiteC"] and torch.equal(done.shared["w"], torch.ones(3))
    assert done.faults[0].detail == f"update of centre SiteA: {2**60} samples, it declared 10 when it joined"


def test_withheld_counts_are_declared_as_none():
    study = settings(federation__weights="uniform", exchange__share_counts=False)
    grid = Grid(study)
    for name in CENTERS:
        grid.centers[name] = Centre(name, study, samples=0)
        grid.centers[name].update = lambda name=name: update_records(Update(name, MODEL, 0, {}))
    (done,) = rounds(grid, study, members=joined(grid, study))
    assert done.centers == list(CENTERS)
    grid.centers["SiteA"].identity["samples"] = 5
    with pytest.raises(FederationError, match="SiteA: its number of samples must be a whole number from 0 to 0, it says 5"):
        wait_for_centers(grid, {"SiteA": 1}, Members(study), 5)


# Deadlines -------------------------------------------------------------------------------------------------------------------------------


def test_a_deadline_follows_from_the_longest_time_and_a_day_is_its_bound():
    faults = settings(deadline=86400).faults
    hours = 3600.0
    known = Deadlines(faults, {"SiteA": 2 * hours, "SiteB": 0.5 * hours})
    assert Deadlines(faults).limit(CENTERS) == 86400, "nothing is known yet"
    assert known.limit(["SiteA", "SiteB"]) == faults.deadline_factor * 2 * hours == 8 * hours
    assert known.limit(CENTERS) == 86400, "a centre whose time is not known has the factor twice, up to the bound"
    known.took("SiteA", 60.0)
    assert known.limit(["SiteA"]) == 8 * hours, "a round that was short for once cuts nobody off"
    quick = Deadlines(faults, {"SiteA": 1.0})
    assert quick.limit(["SiteA"]) == deadlines.LEAST and quick.limit(CENTERS) == deadlines.LEAST
    assert Deadlines(settings(deadline=20).faults, {"SiteA": 60.0}).limit(["SiteA"]) == 20
    assert deadlines.joining_time(86400, 0) == 86400 and deadlines.joining_time(86400, 3) == deadlines.LEAST, "a dead one was known"


def test_one_dead_centre_does_not_cost_a_day(monkeypatch):
    monkeypatch.setattr(deadlines, "LEAST", 0.3)
    study = settings(deadline=86400)
    grid = Grid(study)
    members = joined(grid, study)
    grid.centers["SiteA"].update = lambda: SILENT
    started = time.monotonic()
    done = rounds(grid, study, 2, members=members)
    assert [one.centers for one in done] == [["SiteB", "SiteC"]] * 2 and time.monotonic() - started < 30
    assert all(row["seconds"] >= 0 for one in done for row in one.traffic)


def test_an_answer_from_disk_says_nothing_of_a_centre_s_time():
    study = settings(deadline=20)
    grid = Grid(study)
    for centre in grid.centers.values():
        fresh = centre.update()
        fresh[ABOUT] = ConfigRecord({**fresh[ABOUT], "stored": True})
        centre.update = lambda fresh=fresh: fresh
    times = Deadlines(study.faults)
    (done,) = rounds(grid, study, members=joined(grid, study), deadlines=times)
    assert times.seconds == {} and [row["seconds"] for row in done.traffic] == [None] * 3


def test_too_few_centres_end_the_round_and_all_are_named():
    study = settings(faults__quorum=1.0)
    grid = Grid(study)
    members = joined(grid, study)
    grid.centers["SiteB"].update = lambda: SILENT
    grid.centers["SiteC"].update = lambda: RecordDict({ABOUT: ConfigRecord({"failed": "MemoryError"})})
    expected = "1 of 3 centres took part, faults.quorum asks for 3: SiteB silent: no answer.*; SiteC failed: MemoryError; the centre's log"
    with pytest.raises(QuorumError, match=expected):
        rounds(grid, study, members=members)
