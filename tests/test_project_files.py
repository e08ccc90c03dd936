"""What GitHub, Zenodo, Binder and Docker read: the same names and versions as the package, and commands that are there.

Their forms are checked by the workflow `tests` (actionlint, cffconvert, hadolint), whose programs are not among the pinned packages.
"""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from vfmgl_lib import __version__
from vfmgl_lib.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
CODEMETA, ZENODO = (json.loads((ROOT / name).read_text("utf-8")) for name in ("codemeta.json", ".zenodo.json"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
HELP = subprocess.run(["bash", ROOT / "run_all.sh", "--help"], capture_output=True, text=True, check=True).stdout
DOI = "10.1038/s41467-025-57427-z"


def test_version_licence_and_words_are_the_package_s():
    assert CITATION["version"] == CODEMETA["version"] == __version__
    assert CITATION["license"] == PROJECT["license"] == ZENODO["license"] and CODEMETA["license"].endswith(PROJECT["license"])
    assert CITATION["keywords"] == CODEMETA["keywords"] == ZENODO["keywords"] == PROJECT["keywords"]
    assert CODEMETA["identifier"] == PROJECT["name"] and CODEMETA["programmingLanguage"]["version"] == PROJECT["requires-python"]
    assert CITATION["title"] == CODEMETA["name"] == ZENODO["title"] == "VFMGL Workbook"


def test_the_paper_is_cited_alike():
    paper = CITATION["preferred-citation"]
    assert paper["doi"] == DOI == ZENODO["related_identifiers"][0]["identifier"]
    assert (
        CODEMETA["referencePublication"]["@id"] == f"https://doi.org/{DOI}" and CODEMETA["referencePublication"]["name"] == paper["title"]
    )
    page = " ".join((ROOT / "docs" / "cite.md").read_text("utf-8").replace(">", " ").split())
    assert f"https://doi.org/{DOI}" in page and paper["title"].split(" supporting")[0] in page
    assert all(f"{author['family-names']}, {author['given-names'][0]}." in page for author in paper["authors"])


def steps(workflow: Path) -> list[dict]:
    jobs = yaml.safe_load(workflow.read_text("utf-8"))["jobs"].values()
    assert all(job["timeout-minutes"] <= 180 for job in jobs if "run" in str(job["steps"]))
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_workflows_take_pinned_actions_few_rights_and_commands_that_are_there(workflow: Path):
    content = yaml.safe_load(workflow.read_text("utf-8"))
    assert content["permissions"] in ({"contents": "read"}, {})
    for step in steps(workflow):
        assert re.fullmatch(r"[\w-]+/[\w-]+(/[\w-]+)?@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}")), step
        for words in map(str.split, step.get("run", "").splitlines()):
            if words[0].endswith("run_all.sh") and not words[1].startswith("-"):
                assert f"./run_all.sh {words[1]} " in HELP
            elif words[0].endswith("/vfmgl"):
                assert words[1] in COMMANDS
            for word in words:
                if word.startswith(("tests/", ".ci/", "results/", "docs/", "./")):
                    assert (ROOT / word).exists(), word


def test_the_tests_run_on_three_pythons():
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize("form", FORMS, ids=[path.stem for path in FORMS])
def test_issue_forms_ask_what_they_need_and_warn_of_patients(form: Path):
    content = yaml.safe_load(form.read_text("utf-8"))
    asked = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in asked}) == len(asked) and any(field.get("validations", {}).get("required") for field in asked)
    if form.stem != "wish":
        assert "no patient data" in form.read_text("utf-8")


def test_containers_install_with_the_script_and_run_as_nobody_special():
    lines = (ROOT / "Dockerfile").read_text("utf-8")
    assert "./run_all.sh install" in lines and HELP.count("./run_all.sh install ") == 1
    assert lines.index("USER 1000:1000") < lines.index("COPY") < lines.index("ENTRYPOINT") and ":latest" not in lines
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    assert "./run_all.sh install" in container["postCreateCommand"]
    binder = ROOT / ".binder" / "postBuild"
    assert "./run_all.sh install" in binder.read_text("utf-8") and binder.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", binder], check=False).returncode == 0
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert {"runs", "build", ".venv", ".git"} <= set(ignored)
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "deploy" / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert not {word for line in copied for word in line.split()} & set(ignored)
