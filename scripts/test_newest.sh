#!/usr/bin/env bash
# Test hftoolkit with the newest released versions of all that it needs, which may be newer than those in constraints.txt.
#   [PYTHON=python3.13] bash scripts/test_newest.sh
set -euo pipefail
exec bash "$(dirname "$0")/smoke.sh" --upgrade --upgrade-strategy eager
