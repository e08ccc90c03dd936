#!/usr/bin/env bash
# Sets the environment up if it is missing, then runs the notebooks (the default), the tests or JupyterLab.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

usage() {
    cat <<'TEXT'
VFMGL Workbook

  ./run_all.sh [options]     run the notebooks; tables, figures and an index page go to runs/<profile>/
  ./run_all.sh test [...]    ruff, mypy and the tests, with the notebooks at their smallest setting (further words go to pytest)
  ./run_all.sh lab [...]     open the notebooks in JupyterLab (further words go to jupyter lab)
  ./run_all.sh install       make the environment or bring it up to date, and run nothing
  ./run_all.sh --help        this text

Options of a run
  --profile NAME|FILE   smoke (default), quick, paper, or a YAML file of your own
  --task NAME|FILE      a task, may be repeated (default: endometrial and nuclei); FILE: the YAML file of a task of your own
                        (vfmgl data new-task writes one)
  --all-tasks           every task there is
  --data DIR            a folder of images laid out as the task expects; needs exactly one --task (default: embedded phantoms)
  --teacher TEACHER     pocket_vit, NAME, FILE, NAME=FILE or random:NAME (default: the profile's); an existing file is FILE,
                        also with '=' in it
  --device cpu|cuda     default: cpu
  --seed N              default: 0
  --only NN[,NN]        these notebooks only, may be repeated: --only 02,04
  --engine process|flower
                        how notebook 04 runs its rounds: in one process (default), or over TLS with a process for every centre
  --jobs N              notebooks at a time (default: the number of cores, as far as the memory reaches, and 1 with --device cuda); those
                        that need one another's studies wait for them. It changes no result
  --check               runs nothing; says what disk, memory and hours it will take on this machine, from a few real steps
  --runs DIR            where results go (default: runs/ in the project)

Environment
  The active conda environment if it is this project's (conda env create --file environment.yml), else .venv in the project's
  folder, made once with uv if it is there, otherwise with python -m venv. Needs Python 3.11 or newer and, once, a C++ compiler (g++).
  PYTHON       the Python to make .venv with (default: the first one on PATH that is new enough)
  OMP_NUM_THREADS  threads of each notebook (default: 1; the last bits of a study depend on it). With large images on a CPU more are
               faster: OMP_NUM_THREADS=8 ./run_all.sh --jobs 1 --profile quick ...
  VFMGL_DATA   the folder with real images that some tests read (default: ../shared/data beside the project)

Exit status: 0 all is well, 1 a notebook or a test failed, 2 something asked for is not possible.
TEXT
}

fail() {
    printf 'run_all.sh: %s\n' "$*" >&2
    exit 2
}

say() {
    printf '%s\n' "$*" >&2
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints the Python the environment is to be made with.
find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python python3.11 python3.12 python3.13 python3.14; do
        if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, found $(python3 --version 2>/dev/null || echo none); name another one with PYTHON=/path/to/python3.11"
}

# Sets `python` to the interpreter of this project's environment, which is made if it is not there.
choose_environment() {
    local name base
    name=$(sed -n 's/^name: *//p' "$root/environment.yml")
    if [[ -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-} == "$name" ]]; then
        python=$CONDA_PREFIX/bin/python
        is_new_enough "$python" || fail "the conda environment '$name' has no Python 3.11 or newer; make it anew from environment.yml"
        return
    fi
    python=$root/.venv/bin/python
    if is_new_enough "$python"; then
        return
    fi
    base=$(find_python)
    say "Making .venv with $("$base" --version)"
    # --clear: what an interrupted attempt left behind is of no use
    if command -v uv >/dev/null; then
        uv venv --quiet --seed --clear --python "$base" "$root/.venv"
    else
        "$base" -m venv --clear "$root/.venv" || fail "'$base -m venv' failed; on Debian and Ubuntu it needs the package python3-venv"
    fi
}

# What the environment has to match: the two files, the Python, and where the project lies (it is installed in place).
wanted_state() {
    "$python" - "$root" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(f"{root}\n{sys.version}\n".encode())
for name in ("pyproject.toml", "constraints.txt"):
    digest.update((root / name).read_bytes())
print(digest.hexdigest())
PY
}

install_packages() {
    if command -v uv >/dev/null; then
        uv pip install --python "$python" --constraint "$root/constraints.txt" "$@"
    else
        "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade
        "$python" -m pip install --disable-pip-version-check --constraint "$root/constraints.txt" "$@"
    fi
}

install_project() {
    local started=$SECONDS
    if ! "$python" -c 'import pymrmr' >/dev/null 2>&1; then
        command -v "${CC:-gcc}" >/dev/null || fail "gcc is needed once, to build pymrmr, and was not found"
        command -v "${CXX:-g++}" >/dev/null || fail "g++ (gcc's C++ compiler) is needed once, to build pymrmr, and was not found"
    fi
    say "Installing the pinned packages; the first time takes some minutes and about 6 GB"
    # pymrmr's setup imports Cython and numpy without saying so: they come first, and the build has to see them.
    install_packages cython hatchling numpy pandas setuptools wheel
    install_packages --no-build-isolation pymrmr
    install_packages --no-build-isolation --editable "${root}[dev,docs]"
    say "Installed in $((SECONDS - started)) s"
}

# Brings the environment up to date. The stamp is written last, so that an interrupted installation is completed by the next call.
prepare() {
    local stamp wanted
    choose_environment
    stamp=$("$python" -c 'import sys; print(sys.prefix)')/vfmgl-installed
    wanted=$(wanted_state)
    if [[ $(cat "$stamp" 2>/dev/null) == "$wanted" ]]; then
        return
    fi
    rm -f "$stamp"
    install_project
    printf '%s\n' "$wanted" >"$stamp.partial"
    mv "$stamp.partial" "$stamp"
}

run_tests() {
    local status=0
    cd "$root"
    # A process computes on one thread; three of them keep two cores busy, since the tests of a federation wait a good deal.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    "$python" -m ruff check . || status=1
    "$python" -m ruff format --check . || status=1
    "$python" -m mypy || status=1
    # Last, so that its closing line is the last one; a complaint of ruff's or mypy's still decides the exit status.
    # Each takes a stretch of the files and helps out at the end, so that what a file's tests share is made in one process, mostly.
    "$python" -m pytest -q -n 3 --dist worksteal "$@" || status=$?
    exit "$status"
}

case ${1:-} in
    -h | --help | help)
        usage
        exit 0
        ;;
esac

# Tests read it from the project's folder; a relative path of the caller's is meant from where he stands.
VFMGL_DATA=${VFMGL_DATA:-$root/../shared/data}
[[ $VFMGL_DATA == /* ]] || VFMGL_DATA=$PWD/$VFMGL_DATA
export VFMGL_DATA

case ${1:-} in
    test)
        shift
        prepare
        run_tests "$@"
        ;;
    lab)
        shift
        prepare
        exec "$python" -P -m vfmgl_lib.cli lab "$@"
        ;;
    install)
        prepare
        say "Ready: $python"
        ;;
    "" | -*)
        prepare
        # -P: this project's library, whatever lies in the folder the caller stands in
        exec "$python" -P -m vfmgl_lib.cli run "$@"
        ;;
    *)
        fail "unknown command '$1'; there are test, lab, install and --help, or options (see ./run_all.sh --help)"
        ;;
esac
