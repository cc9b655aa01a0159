#!/usr/bin/env bash
# Checks style and formatting. `.venv/bin/ruff check --fix` and `.venv/bin/ruff format` mend what they can.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh

echo "lint: ruff check"
.venv/bin/python -m ruff check .
echo "lint: ruff format --check"
.venv/bin/python -m ruff format --check .
