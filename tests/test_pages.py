"""What the repository's pages say: commands that their parsers accept, code that runs, links that lead somewhere, figures of a known size.

docs/site.md tells readers what is run and what is checked; it must be changed with this file.
"""

import argparse
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
import yaml
from PIL import Image

from vfmgl_lib import cli
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.tools.docs.gallery import LARGEST
from vfmgl_lib.tools.docs.pages import ELSEWHERE
from vfmgl_lib.tools.docs.reference import help_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted({"README.md", *ELSEWHERE, *(file.relative_to(ROOT).as_posix() for file in (ROOT / "docs").rglob("*.md"))})
LANGUAGES = ("", "bash", "sh", "console")  # of code that holds commands
# Programs that are not this project's; what is called with them is read by tests/tools/flower/test_deploy.py or was tried by hand
OTHERS = {
    "bandit", "cd", "chown", "conda", "cp", "docker", "export", "install", "journalctl", "nft", "pip", "pip-audit", "pre-commit", "pytest",
    "sha256sum", "source", "systemctl", "useradd",
}  # fmt: skip
PLACEHOLDERS = {"TASK": "nuclei"}  # a word of the pages that a parser takes for a choice


class Command(NamedTuple):
    page: str
    text: str


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each block of code: fenced, or indented by four blanks ("")."""
    language, held = None, []
    for line in [*(ROOT / page).read_text("utf-8").split("\n"), ""]:
        fence = re.match(r" *(?:```|~~~)([\w{}-]*)", line)
        if fence and language is None:
            language, held = fence[1], []
        elif fence:
            yield language, "\n".join(held)
            language, held = None, []
        elif language is not None:
            held.append(line)
        elif line.startswith("    ") and not line.strip().startswith(("-", "*")):
            yield "", line.strip()


def commands() -> list[Command]:
    found = []
    for page in PAGES:
        for language, text in blocks(page):
            if language in LANGUAGES:
                found += [Command(page, line.strip()) for line in text.replace("\\\n", " ").split("\n") if line.strip()]
    return [command for command in found if is_command(command.text)]


def is_command(text: str) -> bool:
    """Whether a line of a block is one: the others are tables, settings, and trees of files."""
    first = text.split()[0]
    return first in {"vfmgl", "./run_all.sh", "papermill", "python"} | OTHERS


class Parsed(BaseException):
    """A command line was accepted; nothing of it is to be run."""


def check_parsed(words: list[str], capsys, monkeypatch) -> None:
    """The command's own parser reads the words; it prints what is wrong and exits otherwise."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    try:
        status = cli.main(words)
    except Parsed:
        return
    except SystemExit as ended:
        status = ended.code
    assert (status == 0 and "--help" in words) or words == ["--version"], capsys.readouterr().err


def test_a_wrong_command_is_found(capsys, monkeypatch):
    for words in (["sweep", "--methodss", "all"], ["predict", "MODEL"], ["swep"], ["run", "--engine", "grpc"]):
        with pytest.raises(AssertionError):
            check_parsed(words, capsys, monkeypatch)


@pytest.mark.parametrize("page", [page for page in PAGES if any(command.page == page for command in commands())])
def test_commands_are_accepted_by_their_parsers(page: str, capsys, monkeypatch):
    for command in [command for command in commands() if command.page == page]:
        try:
            words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command.text, comments=True) if word not in ("...", "…")]
        except ValueError as error:
            pytest.fail(f"{command.text}: {error}")
        if any("$" in word for word in words):
            continue
        if words[:2] == ["python", "-m"]:  # as 0.1.0 called them
            words = ["vfmgl", words[2].removeprefix("vfmgl_lib."), *words[3:]]
        if words[0] == "vfmgl" and words[1] != "lab":
            check_parsed(words[1:], capsys, monkeypatch)
        elif words[0] == "./run_all.sh":
            check_run_all(words[1:], capsys, monkeypatch)
        elif words[0] == "papermill":
            check_papermill(words[1:])
        elif words[0] == "python" and words[1] != "-c":
            assert (ROOT / words[1]).is_file(), command.text
        else:
            assert words[0] in OTHERS | {"vfmgl", "python"}, command.text


def check_run_all(words: list[str], capsys, monkeypatch) -> None:
    if words[:1] in (["test"], ["lab"], ["install"]):
        help_text = subprocess.run(["bash", ROOT / "run_all.sh", "--help"], capture_output=True, text=True, check=True).stdout
        assert f"./run_all.sh {words[0]} " in help_text
    else:
        check_parsed(["run", *words], capsys, monkeypatch)


def check_papermill(words: list[str]) -> None:
    notebook = nbformat.read(ROOT / words[0], as_version=4)
    parameters = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    named = [words[place + 1] for place, word in enumerate(words) if word == "-p"]
    assert named and all(re.search(rf"^{name}:", parameters, re.MULTILINE) for name in named)


@pytest.mark.parametrize("page", PAGES)
def test_commands_named_in_a_text_and_their_options_are_there(page: str):
    """`vfmgl sweep --tune` within a sentence is no whole call: command and options are looked up in its help."""
    for text in re.findall(r"`((?:vfmgl|\./run_all\.sh) [^`]+)`", (ROOT / page).read_text("utf-8")):
        words = text.split()
        if words[0] == "./run_all.sh":
            words = ["vfmgl", "run", *words[1:]] if words[1].startswith("-") else []
        for name in [name for name in re.split(r"[|,{}]", words[1]) if name] if len(words) > 1 and re.match(r"[a-z{]", words[1]) else []:
            assert name in cli.COMMANDS, f"{page}: {text}"
        if len(words) > 2 and words[1] in cli.COMMANDS and words[1] != "lab":
            part = (
                [words[2]]
                if re.fullmatch(r"[a-z-]+", words[2]) and not words[2].startswith("-") and words[1] in ("data", "federation")
                else []
            )
            help_text = help_of(cli.main, words[1], *part)
            options = [word for word in words[2:] if word.startswith("--")]
            assert [option for option in options if option not in help_text] == [], f"{page}: {text}"


PYTHON = [(page, text) for page in PAGES for language, text in blocks(page) if language == "python"]


@pytest.mark.parametrize("text", [text for _, text in PYTHON], ids=[f"{page}-{place}" for place, (page, _) in enumerate(PYTHON)])
def test_python_on_pages_runs(text: str, tmp_path: Path, monkeypatch):
    """As it stands, but with the tests' smallest profile in the place of `smoke`."""
    monkeypatch.chdir(tmp_path)
    exec(compile(text.replace('"smoke"', repr(str(ROOT / "tests" / "smallest.yaml"))), "page", "exec"), {})


def test_how_to_own_data_works_command_by_command(tmp_path: Path, monkeypatch, capsys):
    """What docs/own_data.md says, in its order; but for the last line, which trains for minutes."""
    page = "docs/own_data.md"
    monkeypatch.chdir(tmp_path)
    (code,) = [text for language, text in blocks(page) if language == "python"]
    exec(compile(code, page, "exec"), {})
    lines = [shlex.split(command.text, comments=True) for command in commands() if command.page == page]
    assert [line[:2] for line in lines] == [["vfmgl", "data"]] * 3 + [["./run_all.sh", "--profile"]]
    for line in lines[:3]:
        assert cli.main(line[1:]) == 0, capsys.readouterr().err
    table = (tmp_path / "IMAGES" / "samples.csv").read_text().splitlines()
    assert len(table) == 81 and "FILL IN" not in "".join(table)
    prepared = (tmp_path / "SET" / "manifest.csv").read_text().splitlines()
    assert len(prepared) == 81


def test_profiles_and_tasks_on_pages_are_valid(tmp_path: Path):
    profiles = [text for page in PAGES for language, text in blocks(page) if language == "yaml" and re.match(r"# my_profile", text)]
    assert profiles
    for text in profiles:
        (tmp_path / "my_profile.yaml").write_text(text)
        for task in yaml.safe_load(text)["tasks"]:
            assert load_settings(task, tmp_path / "my_profile.yaml").student.name == yaml.safe_load(text)["tasks"][task]["student"]["name"]


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str):
    """On GitHub as on the site: to a file, and to a heading that is there."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)\s#:]*)(#[^)\s]*)?\)", text):
        file = (ROOT / page).parent / target if target else ROOT / page
        generated = page.startswith("docs/") and target in ("api/index.rst", "../api/index.rst")
        assert generated or file.exists(), f"{page}: {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor[1:] in {slug(heading) for heading in headings}, f"{page}: {target}{anchor}"


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_readme_is_short_and_begins_with_a_figure():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 120 and lines[2].startswith("![")


def test_the_gallery_is_small_and_every_picture_has_a_text():
    record = yaml.safe_load((ROOT / "docs" / "gallery.yaml").read_text())
    files = {file.stem: file for file in (ROOT / "docs" / "figures").glob("*.png")}
    assert len(record) == 6 and files.keys() == record.keys()
    readme = (ROOT / "README.md").read_text("utf-8")
    for name, file in files.items():
        assert file.stat().st_size <= LARGEST and Image.open(file).width >= 600
        assert re.search(rf"!\[[^\]]{{15,}}\]\(docs/figures/{name}\.png\)", readme), name
    for page in PAGES:
        assert re.findall(r"!\[[^\]]{0,14}\]\(", (ROOT / page).read_text("utf-8")) == [], page


NUMBER = re.compile(r"\b0\.\d{3}\b")


def test_numbers_of_the_claims_are_those_of_results():
    """Each score in README's table of claims and in docs/paper.md stands in results/README.md."""
    results = set(NUMBER.findall((ROOT / "results" / "README.md").read_text("utf-8")))
    readme = (ROOT / "README.md").read_text("utf-8").split("## Claims")[1].split("## What a run shows")[0]
    for text in (readme, (ROOT / "docs" / "paper.md").read_text("utf-8")):
        assert len(NUMBER.findall(text)) > 15 and set(NUMBER.findall(text)) <= results
    assert "118 numbers" in readme and len((ROOT / "data_manifests" / "paper_results.csv").read_text().splitlines()) == 119


def test_the_glossary_is_in_alphabetical_order():
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8").split("```{glossary}\n")[1]
    terms = [line for line in text.split("\n") if line and not line.startswith((" ", "`"))]
    assert len(terms) > 20 and terms == sorted(terms, key=str.lower)
