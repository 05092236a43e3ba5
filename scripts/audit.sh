#!/usr/bin/env bash
# Look up the known vulnerabilities of the tested versions, with pip-audit in an environment of its own.
#   bash scripts/audit.sh [PIP-AUDIT ARGUMENTS]
# It asks the advisory service of the package index; --vulnerability-service osv asks another. What could not be looked up fails.
set -euo pipefail
cd "$(dirname "$0")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work"
"$work/bin/python" -m pip install --quiet pip-audit
"$work/bin/pip-audit" --requirement constraints.txt --require-hashes --disable-pip --strict --progress-spinner off "$@"
