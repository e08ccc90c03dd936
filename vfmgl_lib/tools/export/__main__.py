"""vfmgl export STUDY --center C --out DIR: a centre's trained model as ONNX, ready for `vfmgl predict`.

    DIR/NAME.onnx         float32; what `vfmgl predict` needs to know is in its metadata
    DIR/NAME.int8.onnx    with --int8: static quantisation by onnxruntime, calibrated on training images
    DIR/NAME.pt           with --torchscript: the traced model, for programs that have torch
    DIR/NAME.md           the model card: data, centres, metrics, intended use, limits
    DIR/NAME.checklist.md TRIPOD+AI and CLAIM, filled as far as the study tells; what is yours to write is marked
    DIR/check.csv         each file against torch, and against the study's own predictions, on real test images
    DIR/int8.csv          what int8 costs: on the validation set, which decides, and on the test set, which only reports

STUDY is a complete study's folder, e.g. runs/smoke/nuclei/studies/vfmgl-seed0-0123456789. The folder DIR appears when everything has
been written and checked, or not at all. Exit status: 0 all is well, 1 refused, 2 the call itself is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vfmgl_lib.base.checkpoint import CheckpointError
from vfmgl_lib.base.files import reason
from vfmgl_lib.base.surroundings import print_anything
from vfmgl_lib.config import ConfigError
from vfmgl_lib.data.images import ImageError
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.study.study import load_study
from vfmgl_lib.tools.export import export_model
from vfmgl_lib.tools.export.checks import ExportError


def main(arguments: Sequence[str] | None = None) -> int:
    print_anything()
    parser = argparse.ArgumentParser(
        prog="vfmgl export", description=__doc__.split("\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of a complete study")
    parser.add_argument("--center", required=True, metavar="C", help="whose model, or 'shared'")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--stage", default="", choices=("", "I", "II", "shared"), help="default: the model's last one")
    parser.add_argument("--round", type=int, metavar="N", help="default: the study's last one")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the study's images, where they have moved")
    parser.add_argument("--int8", action="store_true", help="write an int8 model too, and what it costs")
    parser.add_argument("--torchscript", action="store_true", help="write TorchScript too")
    given = parser.parse_args(arguments)
    try:
        exported = export_model(
            load_study(given.study, given.data),
            given.center,
            given.out,
            stage=given.stage,
            round_number=given.round,
            int8=given.int8,
            torchscript=given.torchscript,
        )
    except OSError as error:
        sys.stderr.write(f"{reason(error)}; nothing was written\n")
        return 1
    except (ExportError, ConfigError, ManifestError, CheckpointError, ImageError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        return 130
    sys.stdout.write("".join(f"{kind}: {file} ({file.stat().st_size} bytes)\n" for kind, file in exported.files.items()))
    sys.stdout.write(exported.check.to_string(index=False) + "\n")
    if len(exported.int8):
        sys.stdout.write(exported.int8.to_string(index=False, na_rep="") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
