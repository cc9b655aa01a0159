#!/usr/bin/env bash
# Runs the tests of features, slow ones too, and renews the compatibility table in README.md from their results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[slow]"
.venv/bin/python -m pytest -n 2 -m "slow or not slow" --compatibility docs/compatibility.json
.venv/bin/python scripts/tables.py
