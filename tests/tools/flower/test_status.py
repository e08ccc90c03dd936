"""How a study stands: read from a server's folder, in words, as a page and for Prometheus."""

import json
import re

import httpx
import pytest

from vfmgl_lib import __version__
from vfmgl_lib.base.files import write_json
from vfmgl_lib.federation.exchange import epsilon
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.tools.flower.members import Members
from vfmgl_lib.tools.flower.running import _times
from vfmgl_lib.tools.flower.site import hold_to_study
from vfmgl_lib.tools.flower.status import TITLES, Now, as_metrics, as_page, in_words, read_status, status_page

WITHHELD = {"exchange__share_counts": False, "federation__weights": "uniform"}
STUDY = load_settings("nuclei", "smoke", exchange__clip=1.0, exchange__noise=10.0, federation__rounds=3, **WITHHELD)


@pytest.fixture
def folder(tmp_path):
    """Two of three rounds: SiteA took part in both, SiteB in the first, SiteC in none."""
    (tmp_path / "centers").mkdir()
    for name in ("SiteA", "SiteB", "SiteC"):
        (tmp_path / "centers" / f"{name}.pub").touch()
    sent = {1: ("SiteA", "SiteB"), 2: ("SiteA",)}
    for number, centers in sent.items():
        part = tmp_path / "state" / "rounds" / f"{number:03d}"
        part.mkdir(parents=True)
        rows = "".join(f"{number},{center},1048576,2097152,{number}.5\n" for center in centers)
        (part / "traffic.csv").write_text("round,center,received,sent,seconds\n" + rows)
        (part / "faults.csv").write_text("round,center,kind,detail\n")
    (part / "faults.csv").write_text('round,center,kind,detail\n2,SiteB,failed,"MemoryError; <b>"\n')
    header = "round,center,task_loss,kept_share,own_validation,shared_validation\n"
    (part / "metrics.csv").write_text(header + "2,SiteA,0.5,nan,0.8125,nan\n")
    write_json(tmp_path / "state" / "members.json", {"teacher": "x", "samples": {"SiteA": 7, "SiteB": 9}})
    return tmp_path


def test_a_study_without_a_server_at_work(folder):
    found = read_status(folder, STUDY)
    assert (found.done, found.rounds, found.since) == (2, 3, None)
    a, b, c = found.centers
    assert (a.name, a.there, a.samples, a.rounds, a.last, a.seconds, a.sent, a.received) == ("SiteA", None, 7, 2, 2, 2.5, 2**22, 2**21)
    assert a.epsilon == pytest.approx(epsilon(10.0, 2)) and b.epsilon == pytest.approx(epsilon(10.0, 1)) and c.epsilon == 0
    assert (b.faults, b.fault) == (1, "round 2, failed: MemoryError; <b>") and (c.samples, c.rounds) == (None, 0)
    text = in_words(found)
    assert "2 of 3 rounds\nno server is at work here" in text and re.search(
        r"SiteA +\? +7 +2 +2 +2\.5 +4\.0 +2\.0 +\S+ +0\.812 +- +0\n", text
    )
    assert (a.own, a.shared, b.own) == (0.8125, None, None)


def test_a_server_at_work_and_who_is_late(folder):
    now = Now(folder / "state")
    now.begins(["SiteA", "SiteB", "SiteC"])
    assert now.due
    now.arrived("SiteA")
    now.renew(["SiteB", "SiteA"])
    assert not now.due
    found = read_status(folder, STUDY)
    assert [(one.there, one.awaited) for one in found.centers] == [(True, False), (True, True), (False, True)] and found.since < 5
    now.ends()
    assert read_status(folder, STUDY).since is None
    now.renew(["SiteB", "SiteA"])
    content = json.loads((folder / "state" / "now.json").read_text())
    write_json(folder / "state" / "now.json", content | {"time": content["time"] - 60})
    assert read_status(folder, STUDY).since is None, "what a server that ended had said does not count"


def test_a_folder_in_which_nothing_has_happened(tmp_path):
    assert in_words(read_status(tmp_path, STUDY)).splitlines()[-1].split("  ")[0] == TITLES[0]


FILES = ("members.json", "now.json", "study.json", *(f"rounds/002/{name}.csv" for name in ("traffic", "metrics", "faults")))
CONTENTS = (
    "",
    "[]",
    "5",
    "null",
    '{"samples": []}',
    '{"samples": {"SiteA": "x"}}',
    '{"time": 1e400}',
    '{"time": "x"}',
    "a,b\n1,2\n",
    "round,center\n1\n",
    "\xff",
)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_of_the_server_s_is_named(folder, file):
    """By the status, by the page, which goes on, and by a server that is started there; or it means nothing to them."""
    path, named, key = folder / "state" / file, 0, STUDY.key()
    write_json(folder / "state" / "study.json", {"key": key, "vfmgl_lib": __version__})
    with status_page(folder, STUDY, 0) as port:
        for content in CONTENTS:
            path.write_bytes(content.encode("latin-1"))
            readers = {
                "status": lambda: in_words(read_status(folder, STUDY)),
                "members": lambda: Members(STUDY, folder / "state" / "members.json"),
                "study": lambda: hold_to_study(folder / "state", key),
            }
            for name, read in readers.items():
                try:
                    read()
                except ValueError as error:
                    assert str(error).startswith(f"{path}: damaged ("), (content, name)
                    assert re.search("remove it|restore it", str(error))
                    assert name != "status" or httpx.get(f"http://127.0.0.1:{port}/").status_code == 500
                    named += 1
            assert _times(folder / "state" / "rounds").get("SiteA", 1.5) >= 1.5, "a server starts beside a damaged table"
        path.unlink()
        assert named >= 3 and httpx.get(f"http://127.0.0.1:{port}/").status_code == 200


def test_metrics_are_prometheus_text(folder):
    lines = as_metrics(read_status(folder, STUDY)).splitlines()
    assert 'vfmgl_center_sent_bytes_total{center="SiteA"} 4194304' in lines and 'vfmgl_center_faults_total{center="SiteB"} 1' in lines
    assert 'vfmgl_center_own_validation{center="SiteA"} 0.8125' in lines and "shared_validation" not in "".join(lines)
    named = [re.fullmatch(r'([a-z_]+)(\{center="[^"]*"\})? [\d.e+-]+', line) for line in lines if not line.startswith("#")]
    assert all(named) and {match[1] for match in named} == {line.split()[2] for line in lines if line.startswith("# TYPE")}


def test_the_page_is_for_this_machine_alone(folder, caplog):
    assert "&lt;b&gt;" in as_page(read_status(folder, STUDY)) and "<b>" not in as_page(read_status(folder, STUDY))
    with status_page(folder, STUDY, 0) as port:
        base = f"http://127.0.0.1:{port}"
        assert "SiteB" in httpx.get(base + "/").text and "vfmgl_rounds_done 2" in httpx.get(base + "/metrics").text
        assert httpx.get(base + "/state").status_code == 404 and httpx.post(base + "/").status_code == 501
        assert httpx.get(base + "/", headers={"Host": f"evil.example:{port}"}).status_code == 404
        with status_page(folder, STUDY, port) as second:
            assert second == 0 and "no status page" in caplog.text
    with pytest.raises(httpx.ConnectError):
        httpx.get(base + "/")
