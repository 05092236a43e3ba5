#!/usr/bin/env bash
# Create a virtual environment and install hftoolkit in it with the tested versions, each file checked against its hash.
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
# Two steps, because pip checks hashes only where everything has one, and a folder of sources has none.
pins="$(mktemp)"
trap 'rm -f "$pins"' EXIT
"$venv/bin/python" scripts/pins.py "${1:-}" > "$pins"
"$venv/bin/python" -m pip install --quiet --require-hashes --requirement "$pins"
"$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
