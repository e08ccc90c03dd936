"""The command `vfmgl` and the ways of 0.1.0 to call its parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vfmgl_lib import __version__, cli

ROOT = Path(__file__).resolve().parent.parent
EARLIER = ("data", "sweep", "export", "predict", "federation")


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
    assert ended.value.code == 0 and said.startswith(f"usage: vfmgl {command} ")


def test_what_needs_no_torch_does_not_load_it():
    """One after the other in one process: the first that loads it is named."""
    code = (
        "import sys; from vfmgl_lib import cli\n"
        "for words in (['--help'], ['data', '--help'], ['predict', '--help'], ['run', '--help']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit: pass\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def earlier():
    """command -> (exit status, stdout, stderr) of its way of 0.1.0 with --help, run as `python -m` does.

    One process for all: most of what a command takes is the import of torch.
    """
    code = (
        "import contextlib, io, json, runpy, sys\n"
        "said = {}\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv = [name, '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:\n"
        "        try: runpy.run_module(f'vfmgl_lib.{name}', run_name='__main__', alter_sys=True)\n"
        "        except SystemExit as ended: said[name] = [ended.code, out, err]\n"
        "print(json.dumps({name: [code, out.getvalue(), err.getvalue()] for name, (code, out, err) in said.items()}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *EARLIER], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_commands_go_on_working_with_a_note(name, earlier):
    status, out, err = earlier[name]
    assert status == 0 and out.startswith(f"usage: vfmgl {name} ")
    assert err.startswith(f"python -m vfmgl_lib.{name} is now `vfmgl {name}`; ") and err.count("\n") == 1


@pytest.mark.parametrize("name", ["sweep", "export", "predict"])
def test_earlier_imports_say_where_it_is(name):
    code = f"import vfmgl_lib.{name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"vfmgl_lib.{name} is vfmgl_lib.tools.{name} since 0.2.0" in done.stderr
