"""A site's ledger: a round is answered once, out of order or beyond the study never; what left the site is known after every accident."""

import json
import os
import re
import shutil

import pytest
import torch

from vfmgl_lib.federation.exchange import epsilon
from vfmgl_lib.tools.flower.__main__ import main
from vfmgl_lib.tools.flower.ledger import LEDGER, Ledger, LedgerError, RoundRefusedError
from vfmgl_lib.tools.flower.messages import train_records, update_records
from vfmgl_lib.tools.flower.network import client_app
from vfmgl_lib.tools.flower.site import Site, state_bytes, update_hash

NOISE = 4.0
SETTINGS = {
    "optimizer__lr": 0.005,
    "federation__rounds": 2,
    "federation__match_updates": False,
    "federation__weights": "uniform",
    "exchange__share_counts": False,
    "exchange__clip": 1.0,
    "exchange__noise": NOISE,
}


@pytest.fixture
def new_site(federation, tmp_path):
    """(folder) -> a site of a study of two rounds with noise, in that folder."""

    def make(name="site"):
        clients, _ = federation("nuclei", "fedavg", **SETTINGS)
        return Site(clients[0], tmp_path / name, "study")

    return make


def lines(site):
    return [json.loads(line) for line in (site.folder / LEDGER).read_text().splitlines()]


def test_a_round_is_answered_once_and_with_the_same_bytes_again(new_site):
    site = new_site()
    first = site.train(1, None)
    for _ in range(5):
        assert update_hash(site.train(1, None)) == update_hash(first), "fresh noise would tell more of the model"
    other = {name: tensor + 1 for name, tensor in first.state.items()}
    with pytest.raises(RoundRefusedError, match="round 1 was answered already, to another message"):
        site.train(1, other)
    assert len(lines(site)) == 2, "the opening, and one update"
    site = new_site()  # started again
    assert update_hash(site.train(1, None)) == update_hash(first)
    second = site.train(2, first.state)
    assert update_hash(site.train(1, None)) == update_hash(first), "an earlier round, as long as it is kept"
    entries = lines(site)[1:]
    assert [entry["round"] for entry in entries] == [1, 2]
    assert [entry["update"] for entry in entries] == [update_hash(first), update_hash(second)]
    assert [entry["bytes"] for entry in entries] == [state_bytes(first.state), state_bytes(second.state)]
    assert [entry["epsilon"] for entry in entries] == [pytest.approx(epsilon(NOISE, rounds), abs=1e-6) for rounds in (1, 2)]


def test_rounds_out_of_order_and_beyond_the_study_are_refused(new_site, monkeypatch):
    site = new_site()
    for number in (3, 50):
        with pytest.raises(RoundRefusedError, match=f"round {number}: the study has 2 rounds"):
            site.train(number, None)
    site.train(2, None)  # it was left out of round 1
    with pytest.raises(RoundRefusedError, match="round 1 comes too late: round 2 was answered already"):
        site.train(1, None)
    assert len(lines(site)) == 2
    with pytest.raises(RoundRefusedError):
        new_site().train(1, None)


def test_what_is_stored_but_did_not_leave_is_answered_when_there_is_room_again(new_site, monkeypatch):
    site = new_site()
    append = os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(LEDGER):
            raise OSError(28, "No space left on device")
        append(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=LEDGER):
        site.train(1, None)
    assert len(lines(site)) == 1, "no half of a line"
    monkeypatch.undo()
    monkeypatch.setattr(site.client, "run_round", lambda *arguments: pytest.fail("trained twice"))
    update = site.train(1, None)
    assert lines(site)[1]["update"] == update_hash(update)


def test_the_ledger_is_on_the_disk_before_the_update_leaves(new_site, monkeypatch):
    site = new_site()
    done, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")) or fsync(descriptor))
    site.train(1, None)
    assert done[-1] == str(site.folder / LEDGER)


def test_an_update_that_is_not_as_it_was_sent_is_not_sent_again(new_site):
    site = new_site()
    site.train(1, None)
    about = site.folder / "rounds" / "001" / "about.json"
    about.write_text(about.read_text().replace('"samples": 0', '"samples": 9'))
    with pytest.raises(ValueError, match="is not the update that was sent before"):
        site.train(1, None)


def changed(content):
    return content.replace(b'"bytes": ', b'"bytes": 1')


def first_taken_out(content):
    opening, _, *others = content.splitlines(keepends=True)
    return b"".join([opening, *others])


def cheaper(content):
    return re.sub(rb'"epsilon": [\d.]+', b'"epsilon": 0.1', content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed, "line 3: was changed or damaged .does not follow from the line before it"),
        (first_taken_out, "line 2: was changed or damaged"),
        (lambda content: content.replace(b"{", b"[", 2), "line 1: was changed or damaged"),
        (lambda content: b"", "is empty"),
        (lambda content: content.replace(b'"study": "study"', b'"study": "other"', 1), "line 2: was changed or damaged"),
    ],
    ids=["changed", "taken out", "no JSON", "emptied", "other study"],
)
def test_a_damaged_ledger_stops_the_site(new_site, damage, message, capsys):
    site = new_site()
    state = site.train(1, None).state
    site.train(2, state)
    file = site.folder / LEDGER
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(LedgerError, match=f"{LEDGER}.*{message}.*(restore it from a backup)"):
        new_site()


def test_rounds_and_lines_that_are_gone_are_missed(new_site):
    site = new_site()
    state = site.train(1, None).state
    site.train(2, state)
    rounds, file, whole = site.folder / "rounds", site.folder / LEDGER, (site.folder / LEDGER).read_bytes()
    kept = site.folder / "kept"
    shutil.copytree(rounds, kept)
    for gone in ("002", ""):
        shutil.rmtree(rounds / gone)
        with pytest.raises(ValueError, match=r"rounds: the state after round 2 is not there, .*; restore it from a backup"):
            new_site()  # it would train on from an older state, and nobody would know
        shutil.rmtree(rounds, ignore_errors=True)
        shutil.copytree(kept, rounds)
    opening, first, _ = whole.splitlines(keepends=True)
    file.write_bytes(opening)
    with pytest.raises(LedgerError, match=f"{LEDGER}: has no line of round 1, which this site has trained"):
        new_site()
    file.write_bytes(opening + first)  # as after a crash between the two: the update of round 2 has not left
    assert update_hash(new_site().train(2, state)) == json.loads(whole.splitlines()[2])["update"]
    assert file.read_bytes().splitlines()[:2] == whole.splitlines()[:2]


@pytest.mark.parametrize(
    ("line", "name", "value"), [(0, "rounds", "x"), (0, "rounds", -5), (1, "round", 2.5), (1, "bytes", None), (1, "round", True)]
)
def test_a_line_that_nothing_vouches_for_holds_numbers(new_site, line, name, value):
    site = new_site()
    if line:
        site.train(1, None)
    file = site.folder / LEDGER
    written = [json.loads(text) for text in file.read_text().splitlines()]
    written[line][name] = value
    file.write_text("".join(json.dumps(one) + "\n" for one in written))
    with pytest.raises(LedgerError, match=f"line {line + 1}: was changed or damaged .*whole number"):
        new_site()


def test_epsilon_is_computed_again(new_site):
    site = new_site()
    site.train(1, None)
    file = site.folder / LEDGER
    file.write_bytes(cheaper(file.read_bytes()))  # the last line, which no other line vouches for
    with pytest.raises(LedgerError, match="round 1: epsilon must be"):
        new_site()


def test_a_line_that_was_cut_off_did_not_leave_and_a_missing_ledger_is_missed(new_site, caplog):
    site = new_site()
    first = site.train(1, None)
    file = site.folder / LEDGER
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"round": 2, "ti')
    site = new_site()
    assert file.read_bytes() == whole and "the last line was cut off" in caplog.text
    site.train(2, first.state)
    file.unlink()
    with pytest.raises(ValueError, match=f"{LEDGER}: is missing beside the rounds"):
        new_site()


def test_a_ledger_of_another_study_or_that_somebody_else_writes_is_refused(tmp_path):
    file = tmp_path / LEDGER
    one, two = Ledger(file, "study", 5, 0), Ledger(file, "study", 5, 0, start=3)
    one.write(1, "m", "u", 10)
    with pytest.raises(LedgerError, match="was changed while this site ran; does another process work in this folder"):
        two.write(1, "m", "u", 10)
    with pytest.raises(LedgerError, match="is of study study, this one is other; choose another folder"):
        Ledger(file, "other", 5, 0)
    later = Ledger(tmp_path / "later", "study", 5, 1.0, start=3)
    later.write(4, "m", "u", 10)
    assert later.entries[0].epsilon == pytest.approx(epsilon(1.0, 4), abs=1e-6) and later.last == 4
    with pytest.raises(RoundRefusedError, match="round 3 comes too late"):
        later.asked(3, "m")


def test_the_server_hears_of_a_refusal_only_its_kind(new_site, message):
    site = new_site()
    reply = client_app(site)(message(train_records(50, None, site.client.settings.key()), "train"), None)
    assert dict(reply.content["about"]) == {"failed": "RoundRefusedError"}


def test_log_shows_what_left_and_whether_the_ledger_is_whole(new_site, tmp_path, capsys):
    site = new_site("hospital/state")
    state = site.train(1, None).state
    site.train(2, state)
    assert main(["log", str(tmp_path / "hospital")]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()[2:4]]
    entries = lines(site)[1:]
    assert [row[0] for row in rows] == ["1", "2"] and [row[3] for row in rows] == [entry["update"][:12] for entry in entries]
    assert rows[1][5] == f"{epsilon(NOISE, 2):.3g}" and f"2 updates left this site, {sum(e['bytes'] for e in entries):,} bytes" in said
    file = site.folder / LEDGER
    file.write_bytes(changed(file.read_bytes()))
    assert main(["log", str(tmp_path / "hospital")]) == 1
    assert "line 3: was changed or damaged" in capsys.readouterr().err
    assert main(["log", str(tmp_path)]) == 1 and "is not there: nothing has left this site yet" in capsys.readouterr().err


def test_counts_and_losses_are_the_same_again_after_a_restart(federation, tmp_path):
    answers = []
    for _ in range(2):
        clients, _ = federation("nuclei", "vfmgl", optimizer__lr=0.005)
        site = Site(clients[0], tmp_path, "study")
        update = site.train(1, None)
        assert update.samples == 4 and set(update.metrics) == {"task_loss", "kept_share"}
        answers.append(update_records(update).object_id)  # the hash of all that travels
    assert site.from_disk and answers[0] == answers[1]


def test_without_noise_there_is_no_epsilon(federation, tmp_path):
    clients, _ = federation("nuclei", "fedavg", optimizer__lr=0.005)
    site = Site(clients[0], tmp_path, "study")
    update = site.train(1, None)
    assert lines(site)[1]["epsilon"] is None and torch.isfinite(update.state["head.weight"]).all()
