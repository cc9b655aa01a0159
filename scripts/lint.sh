#!/usr/bin/env bash
# Checks style, formatting and transformers' rules for models. `.venv/bin/ruff check --fix` and `.venv/bin/ruff format`
# mend what they can of the first two.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh

echo "lint: ruff check"
.venv/bin/python -m ruff check .
echo "lint: ruff format --check"
.venv/bin/python -m ruff format --check .
echo "lint: transformers-mlinter"
.venv/bin/python scripts/lint_models.py
