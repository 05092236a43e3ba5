#!/usr/bin/env bash
# Build the docs as a web site in .site and check its links and anchors; a warning is an error.
#   bash scripts/docs.sh [MKDOCS ARGUMENTS]
# Installs MkDocs with the versions in scripts/docs-requirements.txt, each file checked against its hash, in .venv-docs or
# $HFTOOLKIT_VENV. The reference pages are written by scripts/docs_reference.py, and docs/images by scripts/docs_picture.py.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${HFTOOLKIT_VENV:-.venv-docs}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --require-hashes --requirement scripts/docs-requirements.txt
# Silences a notice: fixes for Material for MkDocs end on 2027-05-05, and Zensical, which reads the same file, succeeds it.
export NO_MKDOCS_2_WARNING=1
"$venv/bin/python" -m mkdocs build --strict --config-file scripts/mkdocs.yml "$@"
echo "built .site/index.html"
