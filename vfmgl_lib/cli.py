"""The command `vfmgl`: one sub-command a tool. A tool's module is imported when it is asked for, so that `vfmgl --help` needs no torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from vfmgl_lib import __version__
from vfmgl_lib.base.surroundings import print_anything, write_out

# sub-command -> where its `main` is, what it does
COMMANDS = {
    "run": ("vfmgl_lib.tools.batch.__main__", "run the notebooks; tables, figures and an index page (run_all.sh calls this)"),
    "init": ("vfmgl_lib.tools.init", "a folder of your own: notebooks, profiles and run_all.sh, to run and to change"),
    "lab": ("vfmgl_lib.tools.lab", "open the notebooks in JupyterLab"),
    "data": ("vfmgl_lib.tools.data.__main__", "fetch, prepare and verify data sets"),
    "teachers": ("vfmgl_lib.tools.teachers", "which networks can be teachers, with size, licence and whether they are here"),
    "sweep": ("vfmgl_lib.tools.sweep.__main__", "many studies: methods, seeds, divisions of the patients, tuning, a whole plan"),
    "export": ("vfmgl_lib.tools.export.__main__", "a trained model as ONNX, checked, with its card"),
    "predict": ("vfmgl_lib.tools.predict.__main__", "an exported model at work on files, without torch"),
    "federation": ("vfmgl_lib.tools.flower.__main__", "a federation over TLS: certificates, server, sites"),
    "docs": ("vfmgl_lib.tools.docs.__main__", "build the site with the notebooks of a run, from a clone of the repository"),
    "pretrain": ("vfmgl_lib.tools.pretrain.__main__", "train the pocket teacher"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a sub-command.

    Args:
        arguments: the words behind `vfmgl`; None: those of the command line.
    Returns: the exit status: 0 all is well, 1 something failed, 2 something asked for is not possible.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    print_anything()
    if words[:1] == ["--version"]:
        write_out(f"vfmgl {__version__}\n")
        return 0
    if not words or words[0] in ("-h", "--help"):
        write_out(_help())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        sys.stderr.write(f"vfmgl: unknown command {words[0]!r}, expected one of {', '.join(COMMANDS)}\n")
        return 2
    return importlib.import_module(COMMANDS[words[0]][0]).main(words[1:])


def earlier_command(name: str) -> int:
    """What `python -m vfmgl_lib.NAME` of 0.1.0 does: the same as `vfmgl NAME`, with one line that says so."""
    sys.stderr.write(f"python -m vfmgl_lib.{name} is now `vfmgl {name}`; this way of calling it goes with the next version\n")
    return main([name, *sys.argv[1:]])


def _help() -> str:
    lines = [f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vfmgl COMMAND [options]",
            "",
            "VFMGL Workbook: HGKT, DDBL and federated rounds, from data to figures.",
            "",
            *lines,
            "",
            "vfmgl COMMAND --help says what a command takes. Exit status: 0 all is well, 1 something failed, 2 something asked for is not",
            "possible.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
