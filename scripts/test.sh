#!/usr/bin/env bash
# Install with what the tests need, and run them.   bash scripts/test.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh test
exec "${HFTOOLKIT_VENV:-.venv}/bin/python" -m pytest "$@"
