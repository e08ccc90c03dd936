"""No code from data: what the library calls is read from its syntax, and what is typed at run_all.sh stays a word."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "vfmgl_lib").rglob("*.py"))
# Where `pickle` is imported, and what of it is used: the name of an error, and a reader that calls nothing (tasks/camelyon17/reader.py).
PICKLE = {"vfmgl_lib/models/teachers.py": {"UnpicklingError"}, "vfmgl_lib/tasks/camelyon17/reader.py": {"Unpickler", "UnpicklingError"}}
NEVER = {
    *("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "shutil.unpack_archive"),
    *("pd.read_pickle", "joblib.load", "tempfile.mktemp"),
}
NEEDS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}


def findings(source: str, allowed: frozenset[str] | set[str] = frozenset()) -> list[str]:
    """Calls that run what data say; `allowed`: what may be used of pickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            bad = {"marshal", "shelve", "dill", "cloudpickle"} | ({"pickle"} if not allowed or isinstance(node, ast.ImportFrom) else set())
            found += [f"import {module}" for module in modules if module.split(".")[0] in bad]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr not in allowed:
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call):
            name, words = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
            if name in NEVER:
                found.append(name)
            if name in NEEDS:
                word, value = NEEDS[name]
                given = words.get(word)
                if not (isinstance(given, ast.Constant) and given.value is value):
                    found.append(f"{name} without {word}={value}")
            if "shell" in words:
                found.append(f"{name} with shell")
            if name.endswith(".extractall"):
                found.append(name)
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_read_is_executed(source):
    name = source.relative_to(ROOT).as_posix()
    assert findings(source.read_text(), PICKLE.get(name, frozenset())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "subprocess.run(command, shell=True)",
        "tarfile.open(path).extractall(folder)",
        "os.system(f'convert {name}')",
    ],
)
def test_what_would_be_found(source):
    assert findings(source)
    assert findings("pickle.loads(content)", {"UnpicklingError"}) == ["pickle.loads"]


def test_words_stay_words(tmp_path):
    """run_all.sh hands on what was typed; a word that is a command to a shell does nothing."""
    shutil.copyfile(ROOT / "run_all.sh", tmp_path / "run_all.sh")
    (tmp_path / "environment.yml").write_text("name: vfmgl\n")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase "$1" in -P) printf "%s\\n" "$@" > "$0.words";; esac\n')
    python.chmod(0o755)
    words = [
        "--data",
        "$(touch pwned)",
        "--task",
        "x; touch pwned",
        "--teacher",
        "`touch pwned`",
        "--runs",
        "a  b*",
        "--profile",
        "'\" && touch pwned",
    ]
    environment = {"PATH": "/usr/bin:/bin", "VFMGL_DATA": "$(touch pwned)"}
    subprocess.run(["bash", tmp_path / "run_all.sh", *words], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert Path(f"{python}.words").read_text().splitlines() == ["-P", "-m", "vfmgl_lib.cli", "run", *words]
    assert not list(tmp_path.rglob("pwned"))
