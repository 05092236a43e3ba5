#!/usr/bin/env bash
# Run the sweeps over all architectures, in the environment of scripts/test.sh.   bash scripts/nightly.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${HFTOOLKIT_VENV:-.venv}/bin/python" -m pytest -m nightly "$@"
