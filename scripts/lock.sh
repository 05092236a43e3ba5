#!/usr/bin/env bash
# Write constraints.txt (tested versions of everything for all extras, with hashes), constraints-lowest.txt (the lower
# bounds of pyproject.toml, and the newest of what those need) and scripts/docs-requirements.txt (what builds the docs, with
# hashes) anew, with uv, from the package index.
#   bash scripts/lock.sh [UV ARGUMENTS]     tested versions stay where pyproject.toml allows them; --upgrade, or
#                                           --upgrade-package NAME, takes newer ones
set -euo pipefail
cd "$(dirname "$0")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet uv
compile=("$work/venv/bin/uv" pip compile --quiet --no-header --no-emit-index-url --python-version 3.11)

cp constraints.txt "$work/tested.txt"
"${compile[@]}" pyproject.toml --all-extras --universal --fork-strategy fewest --generate-hashes \
    --output-file "$work/tested.txt" "$@"
cat - "$work/tested.txt" > constraints.txt <<'HEADER'
# The tested set for all extras, with the hashes of its files on any system; scripts/install.sh installs what is asked of it.
# Made by scripts/lock.sh; "via" says who needs an entry. What a reader may not know:
#   absl-py, grpcio, Markdown, Werkzeug           tensorboard
#   ast-serialize, librt, mypy-extensions         mypy
#   box2d, box2d-py, pygame-ce, swig              LunarLander, and drawing gymnasium's environments
#   cuda-*, nvidia-*, triton                      torch on Linux, for NVIDIA GPUs
#   cwevals, and with it distro, httpx, sniffio   a client of CoreWeave's that wandb requires
#   dill, multiprocess, xxhash, aiohttp           datasets
#   et-xmlfile                                    openpyxl
#   grimp                                         import-linter
#   hf-xet, httpx2, httpcore2, truststore         huggingface-hub: transfer, and HTTP
#   narwhals                                      scikit-learn
#   opentelemetry-*, googleapis-common-protos     wandb
#   pathspec, tomlkit, trove-classifiers          hatchling, which builds the package; editables too, for pip --editable
HEADER

# Not universal: no numpy is at once the lowest and one that Python 3.13 has.
"$work/venv/bin/python" scripts/pins.py --lowest faiss,rl,trackers > "$work/lowest.in"
printf '%s\n' pytest pytest-xdist hypothesis sentence-transformers >> "$work/lowest.in"
[ ! -e constraints-lowest.txt ] || cp constraints-lowest.txt "$work/lowest.txt"
"${compile[@]}" "$work/lowest.in" --no-annotate --output-file "$work/lowest.txt" "$@"
cat - "$work/lowest.txt" > constraints-lowest.txt <<'HEADER'
# The lower bounds of pyproject.toml, and the newest versions of what those need, on Linux with Python 3.11 or 3.12;
# scripts/test_lowest.sh tests them. Made by scripts/lock.sh.
HEADER

# Apart from the tested set: what builds the docs is in an environment of its own and sets no bounds for what runs.
[ ! -e scripts/docs-requirements.txt ] || cp scripts/docs-requirements.txt "$work/docs.txt"
printf '%s\n' mkdocs-material 'mkdocstrings[python]' |
    "${compile[@]}" - --no-annotate --universal --generate-hashes --output-file "$work/docs.txt" "$@"
cat - "$work/docs.txt" > scripts/docs-requirements.txt <<'HEADER'
# What scripts/docs.sh builds the docs with, with the hashes of its files on any system. Made by scripts/lock.sh.
HEADER
