#!/usr/bin/env bash
# Runs this folder's notebooks, or opens them in JupyterLab, with the environment that made the folder (`vfmgl init`).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
python=${PYTHON:-@PYTHON@}

fail() {
    printf 'run_all.sh: %s\n' "$*" >&2
    exit 2
}

case ${1:-} in
    -h | --help | help)
        printf '%s\n' "./run_all.sh [options]      as vfmgl run; options: ./run_all.sh run --help" \
            "./run_all.sh lab [...]      as vfmgl lab" "PYTHON=FILE ./run_all.sh    with the Python of another environment, for instance after an update"
        exit 0
        ;;
    test) fail "the tests come with the project's repository, not with the package" ;;
esac

[[ $PWD -ef $root ]] || fail "call it from its own folder: cd $root"
[[ -x $python ]] || fail "$python is gone; name another environment's Python: PYTHON=/path/to/python ./run_all.sh"
"$python" -P -c 'import vfmgl_lib' 2>/dev/null || fail "$python has no vfmgl_lib; install it there: $python -m pip install vfmgl-workbook"

case ${1:-} in
    lab | run) exec "$python" -P -m vfmgl_lib.cli "$@" ;;
    "" | -*) exec "$python" -P -m vfmgl_lib.cli run "$@" ;;
    *) fail "unknown command '$1'; there are lab, --help, or options (./run_all.sh run --help)" ;;
esac
