"""A server's and a site's folder, what they need, and how they run: the ground of `vfmgl federation`.

server/   server.yaml (see `ServerSettings`)  study.json  ca.pem  server.pem  server.key  centers/CENTRE.pub  state/rounds/NNN/
site/     site.yaml (see `SiteSettings`)  study.json  ca.pem  key  state/
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import re
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator

from vfmgl_lib import __version__
from vfmgl_lib.base.files import reason, write_json, write_text
from vfmgl_lib.base.strict_yaml import StrictModel, YamlError, problems, read_yaml
from vfmgl_lib.base.surroundings import proxy_for
from vfmgl_lib.config import FIRST_VERSION, ConfigError, StudySettings, check_version
from vfmgl_lib.data.manifest import Manifest, ManifestError, check_manifest
from vfmgl_lib.data.manifest_files import read_manifest
from vfmgl_lib.data.names import name_problems
from vfmgl_lib.methods.registry import METHODS, new_server
from vfmgl_lib.methods.settings import checked_settings, load_settings, with_overrides
from vfmgl_lib.study.assembly import (
    as_studied,
    new_student,
    study_teacher,
    taking_part,
    with_available_teacher,
    with_needed_validation,
)
from vfmgl_lib.tasks.prepare import is_prepared, read_prepared
from vfmgl_lib.tasks.records import earlier_reading
from vfmgl_lib.tools.flower import credentials, sandbox
from vfmgl_lib.tools.flower.gate import nginx_program
from vfmgl_lib.tools.flower.inside import admitted
from vfmgl_lib.tools.flower.programs import must_be_free
from vfmgl_lib.tools.flower.superlink import check_keys

log = logging.getLogger(__name__)
ROOM = 4 * 2**30  # bytes of disk that a study's checkpoints should find
FLOWER = "1.41.0"
STATUS_PORT = 9093
WAIT = 86400  # seconds that a server waits for the centres before the first round
LONGEST_HOST = 253
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
UNNAMED = "CENTRE"  # what a new site.yaml calls its centre

Settings = TypeVar("Settings", bound=StrictModel)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not HOST.fullmatch(host) or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("must be the server's name or IPv4 address, a colon and its port, as in federation.example.org:9092")
    return text


class ServerSettings(StrictModel):
    """server.yaml."""

    host: str = Field(min_length=1, description="address to listen on; 0.0.0.0: every one")
    port: int = Field(ge=1, le=65535)
    wait: float = Field(gt=0, description="seconds to wait for the centres before the first round")
    status_port: int = Field(default=0, ge=0, le=65535, description="of the page on 127.0.0.1 that says how the study stands; 0: none")
    nginx: bool = Field(default=True, description="before the SuperLink; false: a proxy of your own, to which 127.0.0.1:port is open")

    @field_validator("status_port")
    @classmethod
    def _of_its_own(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("port"):
            raise ValueError("is the port of the federation; the page about the study needs one of its own")
        return value


class SiteSettings(StrictModel):
    """site.yaml."""

    center: str = Field(min_length=1, description="this centre's name, as the coordinator has it")
    superlink: Annotated[str, AfterValidator(_address)] = Field(description="the server's address, host:port")
    data: Path = Field(description="folder with this centre's images and manifest.csv, as `vfmgl data prepare` makes it")
    patience: float = Field(default=86400, gt=0, description="seconds without a connection after which this site gives up")
    threads: int = Field(default=0, ge=0, le=1024, description="of the CPU; 0: as many as torch chooses")
    divided: bool = Field(default=False, description="the manifest's splits are the study's; false: the study's settings divide the data")
    share_validation: bool = Field(default=True, description="AUC or Dice on the own validation images leaves with each update")
    sandbox: bool = Field(default=True, description="the process reaches no files but its own (Linux 5.13 or newer)")
    teacher_cache: str = Field(default="", description="folder for the teacher's features; empty: none")


@dataclass(frozen=True)
class ServerFolder:
    folder: Path
    settings: ServerSettings
    study: StudySettings


@dataclass(frozen=True)
class SiteFolder:
    folder: Path
    settings: SiteSettings
    study: StudySettings

    @property
    def data(self) -> Path:
        return self.folder / self.settings.data


@dataclass(frozen=True)
class Finding:
    """One line of a check."""

    good: bool
    text: str


def init(folder: Path, task: str, profile: str, method: str, seed: int, host: str, port: int, teacher: str) -> None:
    """Writes the server's folder and the one that every centre gets a copy of.

    Raises: ConfigError: unknown task, profile or method, a host or port that cannot be. FileExistsError: the folder is not empty.
    """
    if not HOST.fullmatch(host) or len(host) > LONGEST_HOST:
        raise ConfigError(f"host {host!r}: give the server's name or IPv4 address alone, as in federation.example.org")
    _checked(ServerSettings, {"host": "0.0.0.0", "port": port, "wait": WAIT}, "init")
    _check_method(method, "init")
    overrides = {"teacher__source": teacher} if teacher else {}
    settings = with_overrides(with_available_teacher(load_settings(task, profile, method=method, seed=seed, **overrides)))
    new_server(settings, ["A", "B"], new_student(settings))  # a student that cannot be made is refused here
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: is not empty; give a new folder, keys are never overwritten")
    server, site = folder / "server", folder / "site"
    credentials.write_certificates(server, [host, "127.0.0.1", "localhost"])
    (server / "centers").mkdir()
    for part in (server, site):
        write_json(part / "study.json", settings.model_dump(mode="json") | {"vfmgl_lib": __version__})
    write_text(server / "server.yaml", SERVER_TEMPLATE.format(port=port, wait=WAIT, status_port=STATUS_PORT + (port == STATUS_PORT)))
    shutil.copyfile(server / credentials.CA, site / credentials.CA)
    write_text(site / "site.yaml", SITE_TEMPLATE.format(unnamed=UNNAMED, address=f"{host}:{port}"))


SERVER_TEMPLATE = """\
# Where the server listens. 0.0.0.0: on every address.
host: 0.0.0.0
port: {port}
wait: {wait}   # seconds for the centres to be there before the first round
status_port: {status_port}   # of the page on this machine that says how the study stands; 0: none
nginx: true   # false: a proxy of your own lets the centres through to 127.0.0.1:port (deploy/README.md)
"""
SITE_TEMPLATE = """\
# What this centre has to fill in. Nothing in this file leaves the centre.
center: {unnamed}                # the name that the coordinator uses for this centre
superlink: {address}  # where the server is
data: data                    # folder with this centre's images and manifest.csv (vfmgl data prepare)
patience: 86400               # seconds without a connection after which this site gives up
share_validation: true        # AUC or Dice on this centre's validation images leaves with each update, for the coordinator to see
sandbox: true                 # the process reaches no files but its own
teacher_cache: teacher_cache  # the teacher's features, computed once
"""


def read_server(folder: Path) -> ServerFolder:
    """Raises: ConfigError: a file that is missing or wrong; names it and what would have been right."""
    return ServerFolder(folder, _read(ServerSettings, folder / "server.yaml"), _study(folder))


def read_site(folder: Path) -> SiteFolder:
    """Raises: ConfigError: a file that is missing or wrong; names it and what would have been right."""
    return SiteFolder(folder, _read(SiteSettings, folder / "site.yaml"), _study(folder))


def check_server(folder: Path) -> list[Finding]:
    """Everything that a server needs, and whether it is there."""
    findings = [
        *_common(folder),
        _finding("server.pem and ca.pem are valid", lambda: _certificates(folder)),
        _finding("server.key is private", lambda: _private(folder / credentials.KEY)),
        _finding("two or more centres have sent a public key", lambda: _enough(public_keys(folder))),
        _finding("server.yaml can be read and its port is free", lambda: _free(folder)),
    ]
    if findings[-1].good and _read(ServerSettings, folder / "server.yaml").nginx:
        findings.append(_finding("nginx is installed", nginx_program))
    return findings


def check_site(folder: Path) -> list[Finding]:
    """Everything that a site needs, and whether it is there; what needs site.yaml or study.json is looked at once they can be read."""
    study, *common = _common(folder)
    filled = _finding("site.yaml is filled in", lambda: _filled(folder))
    findings = [study, *common, filled]
    findings.append(_finding("key is this centre's private key", lambda: _own_key(folder / "key")))
    findings.append(_finding("ca.pem is valid", lambda: _valid(folder / credentials.CA)))
    if study.good and filled.good:
        given = read_site(folder)
        findings.append(_finding(f"{given.data} holds the images of {given.settings.center}", lambda: own_data(given, files=True)))
        findings.append(_finding("the teacher can be loaded", lambda: _has_teacher(given.study)))
        findings.append(_finding(f"{given.settings.superlink} answers and knows this centre's key", lambda: _reach(given)))
        if given.settings.sandbox:
            findings.append(_finding("the process can be kept to its own files", _has_landlock))
    return findings


def _common(folder: Path) -> list[Finding]:
    return [
        _finding("study.json is for this version of the library", lambda: _study(folder)),
        _finding(f"Flower {FLOWER} is installed", _has_flower),
        _finding(f"{folder} can be written and has {ROOM // 2**30} GiB of room", lambda: _room(folder)),
    ]


def _finding(text: str, look: Callable[[], object]) -> Finding:
    try:
        look()
    except (ValueError, OSError, RuntimeError) as error:
        return Finding(False, f"{text}: no. {plain(error)}")
    return Finding(True, text)


def plain(error: Exception) -> str:
    """An error in plain words: the system's are translated, the library's own are so already."""
    number: Any = getattr(error, "errno", None)
    if number is None and type(error) is not TimeoutError:
        return str(error)
    for kind, text in SYSTEM_ERRORS.items():
        if isinstance(error, kind):
            return text.format(file=error.filename or "a file", reason=getattr(error, "verify_message", ""))
    return ERROR_NUMBERS.get(number) or (reason(error) if isinstance(error, OSError) else str(error))


# The first that fits counts: narrower kinds come before wider ones.
SYSTEM_ERRORS = {
    ssl.SSLCertVerificationError: "ca.pem does not vouch for its certificate ({reason}); ask the coordinator for the newest ca.pem, "
    "and the network's administrator whether a proxy opens TLS connections",
    ssl.SSLError: "what answers there does not speak TLS as the server does; are address and port right?",
    socket.gaierror: "this name is not known here; is it spelt right, and does this machine's DNS know it?",
    ConnectionRefusedError: "nothing listens there; is the server running, and the port open in its firewall?",
    ConnectionError: "the connection was broken off; does a firewall or proxy stand between?",
    TimeoutError: "no answer; a firewall may drop the connection",
    FileNotFoundError: "{file} is not there",
    PermissionError: "this user may not open {file}",
}
ERROR_NUMBERS = {
    errno.EADDRINUSE: "the port is taken: by another program, or this server runs already",
    errno.EADDRNOTAVAIL: "this machine has no such address; 0.0.0.0 stands for every one",
    errno.EHOSTUNREACH: "no way leads there from this network",
    errno.ENETUNREACH: "no way leads there from this network",
}


def _read(kind: type[Settings], file: Path) -> Settings:
    try:
        values = read_yaml(file)
    except FileNotFoundError as error:
        remedy = "give the folder that `vfmgl federation init` made, server/ for the coordinator and a copy of site/ for a centre"
        raise ConfigError(f"{file} is not there; {remedy}") from error
    except (OSError, YamlError) as error:
        raise ConfigError(f"{file}: cannot be read: {plain(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must hold lines of the form name: value, got {values!r:.80}")
    return _checked(kind, values, str(file))


def _checked(kind: type[Settings], values: dict, where: str) -> Settings:
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(problems(error, "the whole", kind))) from error
    except TypeError as error:
        raise ConfigError(f"{where}: names must be words, got {list(values)!r:.80}") from error


def _study(folder: Path) -> StudySettings:
    file = folder / "study.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read: {plain(error)}; the coordinator's `init` makes it") from error
    if not isinstance(values, dict) or not {"task", "profile"} <= values.keys():
        raise ConfigError(f"{file}: is not a study's settings; the coordinator's `init` makes it")
    remedy = "install that version here, or have the coordinator make the folders anew with `init`"
    check_version(file, values.pop("vfmgl_lib", FIRST_VERSION), remedy)
    try:
        settings = checked_settings(values)
    except (ConfigError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}; the coordinator's `init` makes it") from error
    _check_method(settings.method, str(file))
    return settings


def _check_method(method: str, where: str) -> None:
    if method not in METHODS:
        raise ConfigError(f"{where}: method {method!r}: there are {', '.join(METHODS)}")
    if not METHODS[method].private:
        raise ConfigError(f"{where}: method {method}: it pools the centres' images and does not run over a network; choose another")


def own_data(given: SiteFolder, files: bool = False) -> Manifest:
    """This centre's samples, in the splits that the study's settings ask for; with `files`, every file is checked.

    What a centre's settings choose depends on its own rows alone: the centre has here the samples it would have in a study on one machine.
    """
    settings, study = given.settings, given.study
    if not (given.data / "manifest.csv").is_file():
        raise ManifestError(f"{given.data}: has no manifest.csv; `vfmgl data prepare` makes it, deploy/README.md says how")
    if is_prepared(given.data):
        manifest = read_prepared(given.data, study.data.record).manifest  # images that needed no conversion stay where they were prepared
    else:
        manifest = read_manifest(given.data / "manifest.csv", given.data, earlier_reading(study.data.layout))
    if settings.center not in manifest.centers:
        raise ManifestError(f"{given.data}: has no centre {settings.center!r}, it has {', '.join(manifest.centers)}")
    if (manifest.task_kind == "segmentation") != study.is_segmentation:
        raise ManifestError(f"{given.data}: is prepared for {manifest.task_kind}; the study is of task {study.task}")
    if manifest.classes != study.data.classes and (study.data.classes or len(manifest.classes) != 2):
        expected = f"the classes {', '.join(study.data.classes)}, in this order" if study.data.classes else "two classes"
        raise ManifestError(
            f"{given.data}: has the classes {', '.join(manifest.classes)}; the study is of {expected}: prepare the images by the "
            f"coordinator's record of the task (task.yaml, `classes`), which every centre needs alike"
        )
    own = replace(manifest, table=manifest.table[manifest.table["center"] == settings.center])
    if not len(own.select(settings.center, "train")):
        raise ManifestError(f"{given.data}: centre {settings.center!r} has no images to train with")
    own = as_studied(own, study) if settings.divided else with_needed_validation(taking_part(own, study), study)
    if files:
        check_manifest(own)
    return own


def public_keys(folder: Path) -> dict:
    files = sorted((folder / "centers").glob("*.pub"))
    if problems := name_problems([file.stem for file in files], (), {}):
        raise ConfigError(f"{folder / 'centers'}: {'; '.join(problems)}; the centre's site.yaml has to say the same name")
    return {file.stem: credentials.read_public_key(file) for file in files}


def _has_flower() -> None:
    if version("flwr") != FLOWER:
        raise ValueError(f"found {version('flwr')}; all sites and the server need {FLOWER}")


def _room(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    if free < ROOM:
        raise OSError(f"{free / 2**30:.1f} GiB are free")


def _valid(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is not there; the coordinator's `init` makes it")
    end = credentials.certificate_end(file)
    if end < datetime.datetime.now(datetime.UTC):
        raise ValueError(f"{file} ended on {end:%Y-%m-%d}; the coordinator makes new ones (deploy/README.md, Renewing)")


def _certificates(folder: Path) -> None:
    for name in (credentials.CA, credentials.CERTIFICATE):
        _valid(folder / name)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(folder / credentials.CERTIFICATE, folder / credentials.KEY)
    except FileNotFoundError as error:
        raise ValueError(f"{folder / credentials.KEY} is not there; the coordinator's `init` makes it") from error
    except ssl.SSLError as error:
        raise ValueError(f"{credentials.KEY} does not belong to {credentials.CERTIFICATE}; take both from the same `init`") from error


def _private(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is not there; the coordinator's `init` makes it")
    if file.stat().st_mode & 0o077:
        raise ValueError(f"others can read it; chmod 600 {file}")


def _own_key(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is not there; `vfmgl federation key {file}` makes it")
    credentials.read_private_key(file)


def _filled(folder: Path) -> None:
    if _read(SiteSettings, folder / "site.yaml").center == UNNAMED:
        raise ValueError(f"{folder / 'site.yaml'}: center is still {UNNAMED}; write the name that the coordinator uses for this centre")


def _has_teacher(study: StudySettings) -> None:
    try:
        study_teacher(study)
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{study.teacher.source}: {error}") from error


def _enough(keys: dict) -> None:
    if len(keys) < 2:
        raise ValueError(f"found {len(keys)} ({', '.join(keys) or 'none'}); each belongs into centers/NAME-OF-THE-CENTRE.pub")
    check_keys(keys)


def _free(folder: Path) -> None:
    settings = _read(ServerSettings, folder / "server.yaml")
    must_be_free(settings.host, settings.port)


def _reach(given: SiteFolder) -> None:
    host, _, port = given.settings.superlink.rpartition(":")
    if not proxy_for(host):  # which may be the only way out; the system's own errors say more than a client's
        context = ssl.create_default_context(cafile=str(given.folder / credentials.CA))
        with socket.create_connection((host, int(port)), timeout=10) as connection, context.wrap_socket(connection, server_hostname=host):
            pass
    if not admitted(given.settings.superlink, given.folder / credentials.CA, given.folder / "key"):
        raise ValueError("the server does not know this centre's key; the coordinator puts key.pub into centers/ and starts it again")


def _has_landlock() -> None:
    if not sandbox.landlock_version():
        raise OSError("this kernel has no Landlock; set sandbox: false and keep the process to its files by other means (deploy/README.md)")
