#!/usr/bin/env bash
# Create a virtual environment and install hftoolkit in it with the tested versions.
#   bash scripts/install.sh [EXTRAS]        for example: bash scripts/install.sh test
# The environment goes to .venv, or to $HFTOOLKIT_VENV.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${HFTOOLKIT_VENV:-.venv}"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: hftoolkit needs Python 3.11 or newer; $("$python" --version) was found. Set PYTHON=/path/to/python" >&2
    exit 4
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable ".${1:+[$1]}"
