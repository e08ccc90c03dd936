"""The folders of a server and a site: made, keyed, checked; every check names what is missing and what to do about it."""

import errno
import json
import shutil
import socket
import ssl
import stat
import sys
import threading
from dataclasses import replace

import pytest
import yaml

from vfmgl_lib.base.files import locked, write_text
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.study.assembly import taking_part
from vfmgl_lib.tasks.prepare import prepare
from vfmgl_lib.tools.flower import credentials, deployment, gate
from vfmgl_lib.tools.flower.__main__ import main
from vfmgl_lib.tools.flower.deployment import check_server, check_site, own_data, plain, read_server, read_site
from vfmgl_lib.tools.flower.one_machine import write_site_data
from vfmgl_lib.tools.flower.programs import Program, free_port, wait_until
from vfmgl_lib.tools.flower.running import _readable, _times
from vfmgl_lib.tools.flower.sandbox import landlock_version, restrict
from vfmgl_lib.tools.flower.site import hold_to_study

PROFILE = "tests/smallest.yaml"


def init(folder, *more: str) -> int:
    return main(["init", str(folder), "--task", "nuclei", "--profile", PROFILE, "--host", "127.0.0.1", "--port", str(free_port()), *more])


@pytest.fixture(autouse=True)
def project_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture
def federation(tmp_path, phantoms, monkeypatch):
    """A server's folder with two keys, and the folder of SiteA, filled in; nginx counts as installed."""
    monkeypatch.setattr(deployment, "nginx_program", lambda: "nginx")
    assert init(tmp_path / "fed") == 0
    server, site = tmp_path / "fed" / "server", tmp_path / "SiteA"
    shutil.copytree(tmp_path / "fed" / "site", site)
    for center in ("SiteA", "SiteB"):
        key = (site if center == "SiteA" else tmp_path) / "key"
        assert main(["key", str(key)]) == 0
        shutil.copyfile(f"{key}.pub", server / "centers" / f"{center}.pub")
    write_site_data(phantoms["nuclei"], "SiteA", site / "data")
    fill(site, center="SiteA")
    return server, site


def fill(site, **values) -> None:
    there = yaml.safe_load((site / "site.yaml").read_text())
    (site / "site.yaml").write_text(yaml.safe_dump(there | values))


def missing(findings) -> list[str]:
    return [finding.text for finding in findings if not finding.good]


def test_init_makes_two_folders_with_one_secret(tmp_path, capsys):
    assert init(tmp_path / "fed") == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "fed" / "server") in said and str(tmp_path / "fed" / "site") in said
    there = {str(path.relative_to(tmp_path / "fed")) for path in (tmp_path / "fed").rglob("*") if path.is_file()}
    assert there == {f"server/{name}" for name in ("ca.pem", "server.key", "server.pem", "server.yaml", "study.json")} | {
        f"site/{name}" for name in ("ca.pem", "site.yaml", "study.json")
    }
    assert stat.S_IMODE((tmp_path / "fed/server/server.key").stat().st_mode) == 0o600
    secrets = [name for name in there if b"PRIVATE KEY" in (tmp_path / "fed" / name).read_bytes()]
    assert secrets == ["server/server.key"], "the CA's key is nowhere"
    study = json.loads((tmp_path / "fed/site/study.json").read_text())
    assert study == json.loads((tmp_path / "fed/server/study.json").read_text())
    assert study["method"] == "vfmgl" and study["federation"]["rounds"] == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "lungs"], "task 'lungs' is not in profile"),
        (["--profile", "tests/none.yaml"], "does not exist"),
        (["--method", "magic"], "method 'magic': there are local, fedavg"),
        (["--port", "70000"], "init: port: Input should be less than or equal to 65535, got 70000"),
        (["--host", "https://federation.example.org"], "host 'https://federation.example.org': give the server's name"),
        (["--host", "federation.example.org:9092"], "host 'federation.example.org:9092': give the server's name"),
        (["--seed", "-1"], "seed: Input should be greater than or equal to 0"),
    ],
)
def test_init_refuses_and_leaves_nothing(tmp_path, capsys, more, message):
    assert init(tmp_path / "fed", *more) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "fed").exists()


@pytest.mark.parametrize("more", [["--port", "9093"], ["--host", "a" * 60 + "." + "b" * 60]])
def test_what_init_makes_can_be_read(tmp_path, more):
    assert init(tmp_path / "fed", *more) == 0
    assert read_server(tmp_path / "fed/server").settings.port
    assert not [text for text in missing(check_server(tmp_path / "fed/server")) if "yaml" in text or ".pem" in text]


def test_nothing_is_overwritten(tmp_path, capsys):
    assert init(tmp_path / "fed") == 0 and main(["key", str(tmp_path / "key")]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert init(tmp_path / "fed") == 1
    assert "is not empty; give a new folder, keys are never overwritten" in capsys.readouterr().err
    assert main(["key", str(tmp_path / "key")]) == 1
    assert f"{tmp_path / 'key'}: is there already, and a key is never overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_folder_of_a_site_will_do_for_its_key(tmp_path, capsys):
    (tmp_path / "my site").mkdir()
    assert main(["key", str(tmp_path / "my site")]) == 0
    assert sorted(path.name for path in (tmp_path / "my site").iterdir()) == ["key", "key.pub"]
    assert main(["status", str(tmp_path / "my site")]) == 1
    assert "server.yaml is not there; give the folder that `vfmgl federation init` made, server/" in capsys.readouterr().err


def test_a_key_pair(tmp_path, capsys):
    file = tmp_path / "folder" / "key"
    assert main(["key", str(file)]) == 0
    assert f"{file}.pub: send it to the coordinator" in capsys.readouterr().out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    private, public = credentials.read_private_key(file), credentials.read_public_key(tmp_path / "folder" / "key.pub")
    assert private.public_key().public_numbers() == public.public_numbers()
    with pytest.raises(ValueError, match="more than one line; a centre has one key"):
        (tmp_path / "two.pub").write_bytes((tmp_path / "folder" / "key.pub").read_bytes() * 2)
        credentials.read_public_key(tmp_path / "two.pub")
    with pytest.raises(ValueError, match="it is a private one, which belongs to its centre alone"):
        credentials.read_public_key(file)
    file.chmod(0o640)
    with pytest.raises(ValueError, match=r"others can read this private key; chmod 600"):
        credentials.read_private_key(file)
    file.chmod(0o600)
    file.write_text("no key")
    with pytest.raises(ValueError, match="key: not a private key"):
        credentials.read_private_key(file)
    (tmp_path / "x.pub").write_text("ssh-rsa no")
    with pytest.raises(ValueError, match=r"x\.pub: not a public key"):
        credentials.read_public_key(tmp_path / "x.pub")


def test_a_site_may_read_packages_wherever_they_lie(federation, tmp_path, monkeypatch):
    elsewhere, other = tmp_path / "lib" / "site-packages", tmp_path / "other"
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.syspath_prepend(other)
    _, site, *_ = federation
    places = _readable(read_site(site))
    assert elsewhere in places and other not in places


def test_a_complete_server(federation, capsys, monkeypatch):
    server, _ = federation
    capsys.readouterr()
    assert main(["check", str(server)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 8 and all(line.startswith("ok: ") for line in said)
    monkeypatch.undo()
    monkeypatch.setattr(gate.shutil, "which", lambda *given, **more: None)
    assert main(["check", str(server)]) == 1
    assert "MISSING: nginx is installed: no. nginx is not installed here (Debian and Ubuntu: apt install" in capsys.readouterr().out
    (server / "server.yaml").write_text((server / "server.yaml").read_text().replace("nginx: true", "nginx: false"))
    assert main(["check", str(server)]) == 0


def test_what_a_server_lacks(federation, tmp_path):
    server, site = federation

    (server / "centers/SiteB.pub").unlink()
    assert missing(check_server(server)) == [
        "two or more centres have sent a public key: no. found 1 (SiteA); each belongs into centers/NAME-OF-THE-CENTRE.pub"
    ]
    shutil.copyfile(server / "centers/SiteA.pub", server / "centers/SiteB.pub")
    (said,) = missing(check_server(server))
    assert "centres SiteA and SiteB have the same public key" in said
    shutil.copyfile(site / "key", server / "centers/SiteB.pub")
    (said,) = missing(check_server(server))
    assert "SiteB.pub: not a public key: it is a private one" in said
    shutil.copyfile(tmp_path / "key.pub", server / "centers/SiteB.pub")

    (server / "server.key").chmod(0o644)
    assert missing(check_server(server)) == [f"server.key is private: no. others can read it; chmod 600 {server / 'server.key'}"]
    (server / "server.key").unlink()
    credentials.write_certificates(tmp_path / "other", ["localhost"])
    shutil.copyfile(tmp_path / "other/server.key", server / "server.key")
    (server / "server.key").chmod(0o600)
    assert missing(check_server(server)) == [
        "server.pem and ca.pem are valid: no. server.key does not belong to server.pem; take both from the same `init`"
    ]


def test_a_server_whose_port_is_taken_or_wrong(federation):
    server, _ = federation
    port = yaml.safe_load((server / "server.yaml").read_text())["port"]
    with socket.create_server(("0.0.0.0", port)):
        (said,) = missing(check_server(server))
    assert said.endswith("the port is taken: by another program, or this server runs already")
    (server / "server.yaml").write_text("host: 0.0.0.0\nport: 9092\nwait: 10\nports: 1\n")
    (said,) = missing(check_server(server))
    assert "ports: Extra inputs are not permitted" in said
    (server / "server.yaml").write_text("9092")
    (said,) = missing(check_server(server))
    assert "must hold lines of the form name: value, got 9092" in said


def test_certificates_end(federation):
    server, site = federation
    for folder in (server, site):
        (folder / "ca.pem").unlink()
    assert [said for said in missing(check_server(server)) if "ca.pem" in said] == [
        f"server.pem and ca.pem are valid: no. {server / 'ca.pem'} is not there; the coordinator's `init` makes it"
    ]
    ended = site.parent / "ended"
    credentials.write_certificates(ended, ["localhost"], days=0)
    shutil.copyfile(ended / "ca.pem", site / "ca.pem")
    (said,) = [said for said in missing(check_site(site)) if said.startswith("ca.pem is valid")]
    assert " ended on " in said and said.endswith("the coordinator makes new ones (deploy/README.md, Renewing)")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"host": "::1"}, None),
        ({"host": "::"}, None),
        ({"port": 9555, "status_port": 9555}, "status_port: Value error, is the port of the federation; "),
        ({"port": True}, "port: Value error, must be a number"),
    ],
)
def test_where_a_server_may_listen(tmp_path, values, said):
    init(tmp_path / "fed")
    file = tmp_path / "fed/server/server.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | values))
    found = [text for text in missing(check_server(tmp_path / "fed/server")) if text.startswith("server.yaml")]
    assert (said in found[0]) if said else found == []


@pytest.mark.parametrize("who", ["server", "site"])
def test_one_process_a_folder(federation, who, capsys):
    """A second one would take away what the first is at work with."""
    folder = federation[who == "site"]
    (folder / "state" / "aside-x").mkdir(parents=True)
    with locked(folder / "state" / ".lock", ValueError()):
        assert main([who, str(folder)]) == 1
    assert f"error: {folder}: this {who} runs already; stop it first" in capsys.readouterr().err
    assert (folder / "state" / "aside-x").is_dir() and sorted(path.name for path in (folder / "state").iterdir()) == [".lock", "aside-x"]


def test_a_site_whose_images_have_changed_does_not_begin(federation, capsys):
    _, site = federation
    image = next((site / "data").rglob("images/*.png"))
    content = image.read_bytes()
    image.unlink()  # a link to the fixture's own
    image.write_bytes(content + b"x")
    assert main(["site", str(site)]) == 1
    assert "changed since it was listed" in capsys.readouterr().err


def test_what_a_new_site_lacks(tmp_path, capsys):
    init(tmp_path / "fed")
    site = tmp_path / "fed/site"
    capsys.readouterr()
    assert main(["check", str(site)]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSING")]
    assert said == [
        f"MISSING: site.yaml is filled in: no. {site / 'site.yaml'}: center is still CENTRE; write the name that the coordinator uses "
        "for this centre",
        f"MISSING: key is this centre's private key: no. {site / 'key'} is not there; `vfmgl federation key {site / 'key'}` makes it",
    ]


def test_what_a_site_lacks(federation):
    """The server does not run in this test: its line alone is missing at a complete site."""
    _, site = federation
    (said,) = missing(check_site(site))
    assert said.endswith(
        "answers and knows this centre's key: no. nothing listens there; is the server running, and the port open in its firewall?"
    )

    def other(**values) -> str:
        kept = (site / "site.yaml").read_text()
        fill(site, **values)
        first = missing(check_site(site))[0]
        (site / "site.yaml").write_text(kept)
        return first

    assert "has no centre 'SiteZ', it has SiteA" in other(center="SiteZ")
    assert "has no manifest.csv; `vfmgl data prepare` makes it" in other(data="elsewhere")
    for wrong in ("federation.example.org", "https://federation.example.org:9092", "a:99999", "[::1]:9092"):
        said = other(superlink=wrong)
        assert f"a colon and its port, as in federation.example.org:9092, got '{wrong}'" in said
    assert "patience: Input should be greater than 0, got -1" in other(patience=-1)
    assert "threads: Input should be less than or equal to 1024" in other(threads=10**8)  # of which torch makes a crash
    assert "patience: Value error, must be a number, and yes, no, true and false are none, got True" in other(patience=True)
    assert "patiense: Extra inputs are not permitted, got 5; did you mean patience?" in other(patiense=5)
    assert "this name is not known here" in other(superlink="nowhere.invalid:9092")

    study = (site / "study.json").read_text()
    (site / "study.json").write_text(study.replace('"rounds"', '"round"'))
    assert f"study.json is for this version of the library: no. {site / 'study.json'}: task nuclei" in missing(check_site(site))[0]
    (site / "study.json").write_text("[" * 100_000)
    assert f"{site / 'study.json'}: cannot be read: " in missing(check_site(site))[0]
    (site / "study.json").write_text(json.dumps({key: value for key, value in json.loads(study).items() if key != "vfmgl_lib"}))
    assert "study.json: was made with vfmgl_lib 0.1.0, this is " in missing(check_site(site))[0]
    (site / "study.json").write_text("[]")
    assert "is not a study's settings; the coordinator's `init` makes it" in missing(check_site(site))[0]
    (site / "study.json").write_text(study.replace("random:test_vit", "random:no_such_vit"))
    assert missing(check_site(site))[0].startswith("the teacher can be loaded: no. random:no_such_vit: ")
    (site / "study.json").write_text(study)

    mask = next((site / "data").rglob("labels/*.png"))
    mask.unlink()
    assert mask.name in missing(check_site(site))[0]


def test_a_site_of_another_task(federation, phantoms, tmp_path):
    _, site = federation
    center = phantoms["endometrial"].centers[0]
    write_site_data(phantoms["endometrial"], center, tmp_path / "classified")
    fill(site, center=center, data=str(tmp_path / "classified"))
    assert "is prepared for classification; the study is of task nuclei" in missing(check_site(site))[0]


@pytest.mark.parametrize("with_tls", [True, False])
def test_another_server_than_the_coordinators(federation, tmp_path, with_tls):
    """An impostor with a certificate of its own, or one that speaks no TLS, is told apart from a silent port."""
    _, site = federation
    credentials.write_certificates(tmp_path / "impostor", ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fill(site, superlink=f"127.0.0.1:{listening.getsockname()[1]}")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tmp_path / "impostor/server.pem", tmp_path / "impostor/server.key")

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                if not with_tls:
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    return
                try:
                    context.wrap_socket(connection, server_side=True)
                except OSError:
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        (said,) = missing(check_site(site))
        thread.join()
    assert ("ca.pem does not vouch for its certificate" if with_tls else "does not speak TLS as the server does") in said


@pytest.mark.parametrize(("method", "message"), [("pooled", "it pools the centres' images"), ("magic", "there are local, fedavg")])
def test_a_study_edited_to_what_does_not_run_over_a_network_does_not_start(federation, capsys, method, message):
    for folder, command in zip(federation, ("server", "site"), strict=True):
        file = folder / "study.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"method": method}))
        for started in ("check", command):  # a server that did start would wait for its sites
            assert main([started, str(folder)]) == 1
            said = "".join(capsys.readouterr())
            assert str(file) in said and method in said and message in said, started


def test_a_folder_that_is_neither(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 1
    assert f"error: {tmp_path}: holds neither server.yaml nor site.yaml" in capsys.readouterr().err
    assert main(["site", str(tmp_path)]) == 1
    assert f"{tmp_path / 'site.yaml'} is not there" in capsys.readouterr().err


def test_room_and_versions(federation, monkeypatch):
    server, _ = federation
    usage = shutil.disk_usage(server)
    monkeypatch.setattr(deployment.shutil, "disk_usage", lambda path: usage._replace(free=2**30))
    monkeypatch.setattr(deployment, "version", lambda package: "1.40.0")
    said = missing(check_server(server))
    assert "Flower 1.41.0 is installed: no. found 1.40.0; all sites and the server need 1.41.0" in said
    assert any(text.endswith("1.0 GiB are free") for text in said) and len(said) == 2


def test_system_errors_in_plain_words():
    assert plain(FileNotFoundError(errno.ENOENT, "No such file", "/data/x")) == "/data/x is not there"
    assert plain(PermissionError(errno.EACCES, "denied", "/data/x")) == "this user may not open /data/x"
    assert plain(OSError(errno.ENOSPC, "No space left", "/x")) == "/x: no room is left on the disk; make room (No space left)"
    assert plain(ConnectionError("10.0.0.1:9092: no connection for 5 s")) == "10.0.0.1:9092: no connection for 5 s", (
        "the library's own stay"
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"data__split": {"train": 0.6, "seed": 3}, "data__per_center": {"train": 2, "test": 2}}],
    ids=["as prepared", "divided anew"],
)
def test_a_site_has_the_samples_that_its_centre_has_in_a_study_on_one_machine(federation, phantoms, settings):
    _, site = federation
    study = load_settings("nuclei", PROFILE, **settings)
    given = replace(read_site(site), study=study)
    whole = taking_part(phantoms["nuclei"], study).table
    expected = whole[whole["center"] == "SiteA"].reset_index(drop=True)
    assert own_data(given).table.reset_index(drop=True).equals(expected)
    fill(site, divided=True)
    kept = own_data(replace(given, settings=read_site(site).settings)).table
    assert len(kept) == (phantoms["nuclei"].table["center"] == "SiteA").sum(), "a manifest that is divided already is taken as it is"


def test_a_prepared_set_whose_images_lie_elsewhere(federation, phantoms, tmp_path):
    _, site = federation
    source = tmp_path / "images"
    shutil.copytree(phantoms["nuclei"].root / "SiteA", source / "SiteA")
    prepare("nuclei", source, tmp_path / "set", progress=False)
    fill(site, data=str(tmp_path / "set"))
    assert len(missing(check_site(site))) == 1, "the server alone"
    assert own_data(read_site(site)).root == source.resolve()


def test_another_system_than_linux_says_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert landlock_version() == 0
    with pytest.raises(OSError, match="has no Landlock"):
        restrict([], [])


@pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")
def test_a_kernel_without_landlock(federation, monkeypatch):
    _, site = federation
    monkeypatch.setattr(deployment.sandbox, "landlock_version", lambda: 0)
    assert any("this kernel has no Landlock; set sandbox: false" in text for text in missing(check_site(site)))
    fill(site, sandbox=False)
    assert not any("Landlock" in text for text in missing(check_site(site)))


def behind_a_proxy(monkeypatch, proxy):
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.upper(), proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_a_server_on_this_machine_is_reached_past_any_proxy(federation, line, monkeypatch, proxy):
    _, site = federation
    behind_a_proxy(monkeypatch, proxy)
    fill(site, superlink=line.address)
    for name, own in (("ca.pem", "ca.pem"), ("SiteA", "key")):
        shutil.copy(line.folder / name, site / own)
    assert not missing(check_site(site))
    fill(site, superlink=f"127.0.0.1:{free_port()}")
    assert any("answers" in text and "roxy" not in text for text in missing(check_site(site)))


def test_programs_that_are_started_pass_no_proxy_on_this_machine(monkeypatch):
    behind_a_proxy(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    heard = []
    with Program(["/usr/bin/env"], heard.append) as program:
        assert wait_until(lambda: program.over, 20)
    assert "no_proxy=example.org,127.0.0.1,localhost" in heard and "NO_PROXY=example.org,127.0.0.1,localhost" in heard


@pytest.mark.parametrize("proxy", ["http://anna:secret@127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://127.0.0.1:9"])
def test_a_proxy_in_between_is_named_without_its_password(federation, monkeypatch, proxy):
    _, site = federation
    behind_a_proxy(monkeypatch, proxy)
    fill(site, superlink="server.invalid:9092")
    (text,) = (text for text in missing(check_site(site)) if "answers" in text)
    shown = proxy.replace("anna:secret@", "")
    assert f"the environment names the proxy {shown} for it" in text and "NO_PROXY name server.invalid?" in text
    assert "secret" not in text
    monkeypatch.setenv("no_proxy", "localhost,server.invalid")
    (text,) = (text for text in missing(check_site(site)) if "answers" in text)
    assert "this name is not known here" in text and "the proxy" not in text


def test_a_server_goes_on_with_no_rounds_of_another_study(federation, capsys):
    server, _ = federation
    key = read_server(server).study.key()
    hold_to_study(server / "state", "another")
    (server / "state" / "rounds" / "001").mkdir(parents=True)
    assert main(["server", str(server)]) == 1
    assert f"{server / 'state'}: holds the rounds of study another, this one is {key}" in capsys.readouterr().err
    (server / "state" / "study.json").unlink()
    assert main(["server", str(server)]) == 1
    assert "holds rounds of an unknown study" in capsys.readouterr().err


def test_the_times_of_the_centres_are_known_after_a_restart(tmp_path):
    rows = {"001": "SiteA,90.5\nSiteB,30.0\n", "002": "SiteA,60.0\nSiteB,\n", "003": "SiteC,\n"}  # empty: answered from disk
    for number, lines in rows.items():
        write_text(tmp_path / number / "traffic.csv", f"center,seconds\n{lines}")
    assert _times(tmp_path) == {"SiteA": 90.5, "SiteB": 30.0}
