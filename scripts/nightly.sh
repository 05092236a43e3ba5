#!/usr/bin/env bash
# Run what takes too long for each change: all families of models.   bash scripts/nightly.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${HFTOOLKIT_VENV:-.venv}/bin/python" -m pytest -m nightly "$@"
