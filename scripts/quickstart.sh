#!/usr/bin/env bash
# From nothing to a fine-tuned sentiment model: install, then train on real reviews.   bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
echo "installing (a few minutes: PyTorch is large) ..."
bash scripts/install.sh
exec "${HFTOOLKIT_VENV:-.venv}/bin/hftoolkit" finetune recipes/sentiment.yaml "$@"
