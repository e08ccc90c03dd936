"""The command `vfmgl` and the ways of 0.1.0 to call its parts."""

import subprocess
import sys
from pathlib import Path

import pytest

from vfmgl_lib import __version__, cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command(words, capsys):
    assert cli.main(words) == (0 if words else 2)
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in cli.COMMANDS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vfmgl {__version__}\n"


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    assert cli.main(["swep"]) == 2
    assert capsys.readouterr().err == f"vfmgl: unknown command 'swep', expected one of {', '.join(cli.COMMANDS)}\n"


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "lab"])
def test_every_command_has_help_of_its_own(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith(f"usage: {'run_all.sh' if command == 'run' else f'vfmgl {command}'} ")


@pytest.mark.parametrize("words", [["--help"], ["data", "--help"], ["predict", "--help"], ["run", "--help"]])
def test_what_needs_no_torch_does_not_load_it(words):
    code = f"import sys; from vfmgl_lib import cli\ntry: cli.main({words})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["data", "sweep", "export", "predict", "federation"])
def test_earlier_commands_go_on_working_with_a_note(name):
    done = subprocess.run([sys.executable, "-m", f"vfmgl_lib.{name}", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: vfmgl {name} ")
    assert done.stderr.startswith(f"python -m vfmgl_lib.{name} is now `vfmgl {name}`; ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["sweep", "export", "predict"])
def test_earlier_imports_say_where_it_is(name):
    code = f"import vfmgl_lib.{name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"vfmgl_lib.{name} is vfmgl_lib.tools.{name} since 0.2.0" in done.stderr
