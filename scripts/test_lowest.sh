#!/usr/bin/env bash
# Test hftoolkit with the lowest versions that pyproject.toml allows, on Python 3.11 or 3.12.
#   [PYTHON=python3.12] bash scripts/test_lowest.sh
set -euo pipefail
exec bash "$(dirname "$0")/smoke.sh" --constraint constraints-lowest.txt
