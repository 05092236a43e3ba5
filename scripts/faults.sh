#!/usr/bin/env bash
# Run the heavy fault tests one after the other, in the environment of scripts/test.sh.   bash scripts/faults.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${HFTOOLKIT_VENV:-.venv}/bin/python" -m pytest -m faults -n 0 "$@"
