#!/usr/bin/env bash
# Installs what the tests need into .venv (or $VENV) and runs them all.
#   bash test.sh                    everything
#   bash test.sh -m "not slow"      arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")"
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q -r requirements.txt -r tests/requirements.txt
"$venv/bin/ruff" check --quiet .
"$venv/bin/ruff" format --check --quiet .
exec "$venv/bin/python" -m pytest "$@"
