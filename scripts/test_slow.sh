#!/usr/bin/env bash
# Sets up, lints and runs the tests that are marked slow. They download a pretrained model (93 MB), once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[slow]"
scripts/test.sh -m slow
