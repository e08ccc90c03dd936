"""vfmgl data {template,prepare,verify,fetch,new-task}: from your images, or the official downloads, to a verified manifest.

    vfmgl data template DIR [--list CSV]             a first samples.csv of your images, by guesses that are told; labels by a list
    vfmgl data fetch TASK --out DIR                  download what is public; say what to request from whom
    vfmgl data prepare TASK --source DIR --out DIR   images and manifest of an unpacked download, checked
    vfmgl data verify DIR                            read every file of a prepared set again
    vfmgl data new-task FILE                         write the YAML file of a task of your own

TASK is a name or, to prepare, the YAML file of a task of your own. A prepared set is what `./run_all.sh --task TASK --data DIR` trains on.
Exit status: 0 all is well, 1 problems were found (all are listed), 2 the call itself is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import requests

from vfmgl_lib.base.files import reason
from vfmgl_lib.base.surroundings import print_anything, write_out
from vfmgl_lib.data.manifest import SPLITS, Manifest, ManifestError
from vfmgl_lib.data.people import PatientNames
from vfmgl_lib.tasks.datasheets import DatasheetError
from vfmgl_lib.tasks.fetch import FetchError, check_downloads, fetch
from vfmgl_lib.tasks.prepare import SplitRule, formats_of, prepare, read_prepared, verify
from vfmgl_lib.tasks.records import TASKS, TaskError, find_task, is_task_file
from vfmgl_lib.tasks.samples import FILE as SAMPLES_FILE
from vfmgl_lib.tasks.template import guess_samples, write_samples
from vfmgl_lib.tools.data.new_task import add_new_task, new_task


def main(arguments: Sequence[str] | None = None) -> int:
    print_anything()
    parser = argparse.ArgumentParser(
        prog="vfmgl data", description=__doc__.split("\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{template,new-task,prepare,verify,fetch}")
    _add_template(commands)
    _add_prepare(commands)
    add_new_task(commands)
    one = commands.add_parser("verify", help="read every file of a prepared set again and compare it with the manifest")
    one.add_argument("folder", type=Path, metavar="DIR", help="a prepared set, or a folder of 'fetch'")
    one = commands.add_parser("fetch", help="download what is public; say what to request from whom")
    one.add_argument("task", choices=sorted(TASKS))
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the downloads")
    one.add_argument("--only", action="append", metavar="NAME", help="this download of the datasheet, may be repeated")
    given = parser.parse_args(arguments)
    try:
        if given.command == "prepare" and given.format not in ("", *(names := [form.name for form in formats_of(find_task(given.task))])):
            parser.error(f"argument --format: {given.format!r} is no format of {given.task} (choose from {', '.join(names)})")
        run = {"template": _template, "new-task": _new_task, "prepare": _prepare, "verify": _verify, "fetch": _fetch}
        return run[given.command](given)
    except (ManifestError, DatasheetError, FetchError, requests.RequestException) as error:
        sys.stderr.write(f"{error}\n")
    except OSError as error:
        sys.stderr.write(f"{reason(error)}; the same call goes on with what is done\n")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same call goes on with what is done\n")
        return 130
    return 1


def _add_template(commands: argparse._SubParsersAction) -> None:
    one = commands.add_parser(
        "template",
        help="a first samples.csv of your images, to be corrected by hand",
        description="Writes DIR/samples.csv from the names of folders and files, and says what was guessed. Images are not opened.",
    )
    one.add_argument("folder", type=Path, metavar="DIR", help="the folder with your images; only read")
    one.add_argument(
        "--task",
        default="",
        metavar="TASK",
        help="a task's name or YAML file, whose classes the folders are called by; without it centers and classes are harder to guess",
    )
    one.add_argument("--out", type=Path, metavar="FILE", help=f"default: DIR/{SAMPLES_FILE}")
    one.add_argument(
        "--list", default="", metavar="CSV", help="a colleague's list: a line a patient or image, with the diagnosis; fills in the label"
    )
    one.add_argument(
        "--list-columns",
        default="",
        metavar="ROLE=NAME,...",
        help="which column of the list is the image, patient, center or label, where the guess is wrong: 'patient=Pat.-Nr.,label=Befund';"
        " 'center=' says that none is",
    )
    _add_pattern(one)
    one.add_argument("--force", action="store_true", help="replace a table that is there")


def _add_pattern(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patient-pattern",
        default="",
        metavar="REGEX",
        help="who is the patient by a file's name: the group called patient, or the first; 'Image_([0-9]+)' finds 01 in Image_01L.jpg",
    )


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    forms = "\n".join(f"  {task:12} {form.name}: {form.description}" for task, record in TASKS.items() for form in formats_of(record))
    one = commands.add_parser(
        "prepare",
        help="images and manifest of an unpacked download",
        description=f"Formats that are recognised:\n{forms}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("task", type=_task, help=f"{', '.join(TASKS)}, or the YAML file of your own")
    one.add_argument("--source", type=Path, required=True, metavar="DIR", help="the unpacked download; only read")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="the prepared set; an interrupted one is completed")
    one.add_argument("--format", default="", metavar="NAME", help="default: what the folder looks like")
    one.add_argument(
        "--samples", default="", metavar="FILE", help=f"the table of the images; default: {SAMPLES_FILE} in the source, if it is there"
    )
    one.add_argument(
        "--patients",
        default="own",
        choices=get_args(PatientNames),
        help="own (default): one name at two centers is two patients; shared: it is one",
    )
    _add_pattern(one)
    one.add_argument(
        "--split",
        default="patient",
        choices=get_args(SplitRule),
        help="patient (default): whole patients; source: the source's own, image: shuffled images; these two can leak, and say so",
    )
    one.add_argument("--seed", type=_seed, default=42, help="of the split, from 0 (default 42)")
    one.add_argument(
        "--max-value", type=_largest, metavar="N", help="what is white in images of more than 8 bits whose files do not say it, e.g. 4095"
    )


def _task(text: str) -> str:
    """A known task's name, or a file, whose problems are no wrong call: they are told alone, when it is read."""
    try:
        if not is_task_file(text):
            find_task(text)
    except TaskError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def _largest(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _template(given: argparse.Namespace) -> int:
    file = given.out or given.folder / SAMPLES_FILE
    guessed = guess_samples(given.folder, given.task, given.patient_pattern, given.list, given.list_columns)
    write_samples(file, guessed.table, force=given.force)
    _say(f"{file}: {len(guessed.table)} rows, by these guesses:", *(f"  {guess}" for guess in guessed.told), "correct them in the file")
    return 0


def _prepare(given: argparse.Namespace) -> int:
    names = ("format", "split", "seed", "max_value", "samples", "patients", "patient_pattern")
    rules = {name: getattr(given, name) for name in names}
    prepared = prepare(given.task, given.source, given.out, **rules)
    state = "complete already, source unchanged" if prepared.reused else "prepared"
    _say(f"{given.out}: {state}, format {prepared.format}", *_summary(prepared.manifest, prepared.warnings))
    return 0


def _verify(given: argparse.Namespace) -> int:
    if (given.folder / "checksums.json").is_file():
        problems = check_downloads(given.folder)
        _say(*(problems or [f"{given.folder}: every download is as it was pinned"]))
        return int(bool(problems))
    warnings = verify(given.folder)
    _say(f"{given.folder}: every file is there and unchanged", *_summary(read_prepared(given.folder).manifest, warnings))
    return 0


def _fetch(given: argparse.Namespace) -> int:
    fetched = fetch(given.task, given.out, only=given.only)
    _say(*(f"{file}: complete" for file in fetched.files), *fetched.requests)
    return 0


def _new_task(given: argparse.Namespace) -> int:
    _say(*new_task(given))
    return 0


def _summary(manifest: Manifest, warnings: Sequence[str]) -> list[str]:
    table = manifest.table
    counts = table.pivot_table(index="center", columns="split", values="id", aggfunc="size", fill_value=0)
    counts = counts[[split for split in SPLITS if split in counts]]
    counts = counts.assign(images=counts.sum(axis=1), patients=table.groupby("center")["patient"].nunique())
    divided = f"manifest {manifest.sha256[:16]}, divided by {manifest.split_unit}"
    return [counts.to_string(), divided, *(f"note: {warning}" for warning in warnings)]


def _say(*lines: str) -> None:
    write_out("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
