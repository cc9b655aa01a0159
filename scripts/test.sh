#!/usr/bin/env bash
# Sets up, lints and runs the tests. Arguments go on to pytest:
#
#   scripts/test.sh -n 0 -k ssd             one process, only tests with "ssd" in their name
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/lint.sh

# Two processes with one torch thread each (tests/conftest.py) suit the smallest machine that the tests should run on.
echo "test: pytest"
.venv/bin/python -m pytest -n 2 --dist worksteal "$@"
