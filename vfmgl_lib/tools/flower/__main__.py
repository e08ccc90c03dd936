"""A federation between hospitals: make it, check it, serve it, take part in it. deploy/README.md is the guide."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from pathlib import Path

from vfmgl_lib.base.surroundings import print_anything
from vfmgl_lib.config import ConfigError
from vfmgl_lib.config.sections import TEACHER_HELP
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.tools.flower import credentials, status
from vfmgl_lib.tools.flower.deployment import Finding, check_server, check_site, init, plain, read_server, read_site
from vfmgl_lib.tools.flower.ledger import LEDGER, in_words
from vfmgl_lib.tools.flower.running import run_server, run_site


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vfmgl federation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    made = commands.add_parser("init", help="the coordinator's first step: a folder for the server and one to hand to every centre")
    made.add_argument("folder", type=Path)
    made.add_argument(
        "--task", required=True, metavar="NAME|FILE", help="a task, or the YAML file of your own; its record goes to every centre"
    )
    made.add_argument("--profile", default="paper")
    made.add_argument("--method", default="vfmgl")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--host", required=True, help="name or address under which the centres reach the server")
    made.add_argument("--port", type=int, default=9092)
    made.add_argument("--teacher", default="", help=f"{TEACHER_HELP}; the same for all centres")

    key = commands.add_parser("key", help="a centre's first step: a key pair; the public part goes to the coordinator")
    key.add_argument("file", type=Path, help="SITE/key; the site's folder is as good")

    for name, text in (
        ("check", "says in plain words what is missing"),
        ("server", "serves the study"),
        ("site", "takes part in the study"),
        ("status", "says how the study stands: rounds, centres, bytes, faults, epsilon; for the server's folder"),
        ("log", "shows what has left a site, from its ledger, and whether the ledger is whole"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path)
        if name == "site":
            command.add_argument("--with-parent", action="store_true", help="end when the process that started this one ends")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns: 0; 1 after an error or where a check finds something missing; 130 if interrupted."""
    print_anything()
    given = command_line().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("flwr").handlers.clear()  # it would write every line a second time
    before = os.umask(0o077)  # keys, models, logs: for this user alone
    try:
        return _run(given)
    except (ConfigError, ManifestError, ValueError, OSError, RuntimeError) as error:
        sys.stderr.write(f"error: {plain(error)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on after the last whole round\n")
        return 130
    finally:
        os.umask(before)


def _run(given: argparse.Namespace) -> int:
    if given.command == "init":
        folder = given.folder
        init(folder, given.task, given.profile, given.method, given.seed, given.host, given.port, given.teacher)
        sys.stdout.write(f"{folder / 'server'}: keep it; the centres' public keys go into {folder / 'server' / 'centers'}/CENTRE.pub\n")
        sys.stdout.write(f"{folder / 'site'}: hand a copy of it to every centre\n")
    elif given.command == "key":
        file = given.file / "key" if given.file.is_dir() else given.file
        credentials.write_key_pair(file)
        sys.stdout.write(f"{file}: keep it and show it to nobody\n{file}.pub: send it to the coordinator\n")
    elif given.command == "check":
        findings = _check(given.folder)
        sys.stdout.write("".join(f"{'ok' if finding.good else 'MISSING'}: {finding.text}\n" for finding in findings))
        return 0 if all(finding.good for finding in findings) else 1
    elif given.command == "server":
        run_server(read_server(given.folder))
    elif given.command == "status":
        sys.stdout.write(status.in_words(status.read_status(given.folder, read_server(given.folder).study)))
    elif given.command == "log":
        file = given.folder / "state" / LEDGER
        if not file.exists():
            raise ConfigError(f"{file} is not there: nothing has left this site yet, or {given.folder} is no site's folder")
        sys.stdout.write("".join(f"{line}\n" for line in in_words(file)))
    else:
        if given.with_parent:
            _end_with_parent()
        run_site(read_site(given.folder))
    return 0


def _check(folder: Path) -> list[Finding]:
    if (folder / "server.yaml").is_file():
        return check_server(folder)
    if (folder / "site.yaml").is_file():
        return check_site(folder)
    raise ConfigError(f"{folder}: holds neither server.yaml nor site.yaml; give the folder that `init` made, or a site's copy of it")


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # at once, also in the middle of a round: its checkpoint is whole or not there

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
