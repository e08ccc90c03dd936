"""What deploy/ says is so: its commands are the library's, its files parse and are hardened, its numbers are computed again."""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from flwr.app import Context, RecordDict
from flwr.server.workflow import SecAggPlusWorkflow

from vfmgl_lib.federation.exchange import epsilon
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.tools.data.__main__ import main as data_main
from vfmgl_lib.tools.flower.__main__ import command_line

DEPLOY = Path(__file__).parents[3] / "deploy"
GUIDE = (DEPLOY / "README.md").read_text()
CODE = re.findall(r"^    (.+)$", GUIDE, re.MULTILINE)
PORT = command_line().parse_args("init x --task t --host h".split()).port


def parsed(words: list[str]):
    """What the command line makes of the words after the module's name; fails as a call would."""
    try:
        return command_line().parse_args(words)
    except SystemExit as error:
        raise AssertionError(f"refused: {words}") from error


class Unit:
    """A systemd unit: several lines of one name are kept."""

    def __init__(self, name: str):
        reader = configparser.RawConfigParser(strict=True, comment_prefixes=("#",))
        reader.optionxform = str
        reader.read_string((DEPLOY / name).read_text())
        self.service, self.unit = dict(reader["Service"]), dict(reader["Unit"])


class Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, which YAML itself forbids and the loader takes."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), keys
        return super().construct_mapping(node, deep)


COMPOSE = Loader((DEPLOY / "compose.yaml").read_text()).get_single_data()


def test_the_guide_s_commands_are_accepted(tmp_path, monkeypatch, capsys):
    ours = [line for line in CODE if line.startswith("vfmgl federation ")]
    assert {parsed(shlex.split(line)[2:]).command for line in ours} == {"init", "key", "check", "server", "site", "log"}
    monkeypatch.chdir(tmp_path)
    (prepare,) = (shlex.split(line)[2:] for line in CODE if line.startswith("vfmgl data "))
    assert prepare[0] == "prepare" and data_main(prepare) == 1, "understood, but there are no images here"
    assert "IMAGES" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="refused"):
        parsed(["serve", "federation"])


def test_the_guide_names_files_that_are_there():
    named = set(re.findall(r"deploy/([\w.-]+)", GUIDE)) | set(re.findall(r"`(vfmgl-\w+\.service|compose\.yaml|Dockerfile)`", GUIDE))
    assert {"compose.yaml", "vfmgl-site.service", "vfmgl-server.service"} <= named
    for name in named:
        assert (DEPLOY / name).is_file(), name
    for path in re.findall(r"`(vfmgl_lib/[\w/]+\.py|data_manifests/[\w.]+)`", GUIDE):
        assert (DEPLOY.parent / path).is_file(), path
    assert f"{PORT} by default" in GUIDE


def test_the_guide_s_profile_is_one(tmp_path):
    block = GUIDE[GUIDE.index("    # hospital.yaml") :].split("\n\n")[0]
    profile = tmp_path / "hospital.yaml"
    profile.write_text("\n".join(line[4:] for line in block.splitlines()))
    settings = load_settings("nuclei", profile)
    assert not settings.exchange.share_counts and settings.exchange.noise == 10 and settings.federation.weights == "uniform"


def test_the_guide_s_epsilons_are_computed():
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 3
    for noise, *values in rows:
        for value, rounds in zip(values, (1, 20, 100), strict=True):
            assert float(value) == pytest.approx(epsilon(float(noise), rounds), rel=0.05), (noise, rounds)


def test_what_a_command_writes_is_its_users_alone(tmp_path):
    command = "init fed --task nuclei --profile smoke --host localhost".split()
    environment = os.environ | {"PYTHONPATH": str(DEPLOY.parent)}
    subprocess.run(
        [sys.executable, "-m", "vfmgl_lib.cli", "federation", *command], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    written = list((tmp_path / "fed").rglob("*"))
    assert len(written) > 8 and not any(path.stat().st_mode & 0o077 for path in written)


def test_why_there_is_no_secure_aggregation():
    """The guide's evidence: SecAgg+ wants the old API's context. If this fails, Flower has changed, and the guide is to be read again."""
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(TypeError, match="Expect a LegacyContext, but get Context"):
        SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2)(None, context)


@pytest.mark.parametrize("role", ["server", "site"])
def test_the_containers_run_what_there_is_and_may_do_little(role):
    service = COMPOSE["services"][role]
    given = parsed(service["command"])
    assert given.command == role
    targets = {volume["target"]: volume for volume in service["volumes"]}
    assert not targets[str(given.folder)].get("read_only"), "the role's own folder is the one that is written"
    assert all(volume.get("read_only") for target, volume in targets.items() if target != str(given.folder))
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & service.keys()
    assert re.search(r"-([1-9]\d*):([1-9]\d*)\}$", service["user"]), "not root by default"
    assert service.get("ports", []) == ([f"{PORT}:{PORT}"] if role == "server" else []), "a site listens nowhere"
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_image_is_made_of_what_there_is():
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    copied = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    for source in copied:
        assert (DEPLOY.parent / source).exists(), source
    # What an installation in place needs, and a read of the profiles.
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "vfmgl_lib", "notebooks/profiles"} == set(copied)
    values = dict(steps)
    assert values["FROM"] == "python:3.11-slim" and values["USER"].partition(":")[0] not in ("0", "root")
    assert json.loads(values["ENTRYPOINT"]) == ["python", "-P", "-m", "vfmgl_lib.cli", "federation"]
    install = next(rest for name, rest in steps if name == "RUN")
    assert install.count("pip install") == install.count("--constraint constraints.txt") == 3


@pytest.mark.parametrize("role", ["server", "site"])
def test_the_units_run_what_there_is_and_may_do_little(role):
    unit = Unit(f"vfmgl-{role}.service")
    python, *words = shlex.split(unit.service["ExecStart"])
    assert python.endswith("/.venv/bin/python") and words[:4] == ["-P", "-m", "vfmgl_lib.cli", "federation"]
    given = parsed(words[4:])
    assert given.command == role
    assert unit.service["ReadWritePaths"] == unit.service["WorkingDirectory"] == str(given.folder)
    hardened = {"ProtectSystem": "strict", "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "PrivateTmp": "yes", "UMask": "0077"}
    assert hardened.items() <= unit.service.items()
    assert unit.service["User"] not in ("", "root") and unit.service["Restart"] == "on-failure"
    assert ("landlock_restrict_self" in unit.service["SystemCallFilter"]) == (role == "site"), "the site's sandbox needs these calls"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("role", ["server", "site"])
def test_systemd_understands_the_units(role, tmp_path):
    file = tmp_path / f"vfmgl-{role}.service"
    shutil.copyfile(DEPLOY / file.name, file)

    def complaints() -> list[str]:
        done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
        own = [line for line in (done.stdout + done.stderr).splitlines() if file.name in line]
        return [line for line in own if "is not executable" not in line]  # nothing is installed in /opt/vfmgl here

    assert complaints() == []
    file.write_text(file.read_text().replace("ProtectSystem=strict", "ProtectSystem=stricter"))
    assert complaints() != []
