#!/usr/bin/env bash
# Creates .venv and installs the project into it, editable, with everything that tests and demo need, at the exact
# versions of constraints.txt. When nothing has changed since the last time it returns at once.
#
#   PYTHON=/path/to/python scripts/setup.sh      chooses the interpreter of a new environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What the environment was made from. The folder counts because an editable install points to it.
recipe() {
    pwd
    cat pyproject.toml constraints.txt
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate candidates=(python3.11 python3.12 python3.13 python3.14 python3)
    if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: found no Python 3.11 or newer among: ${candidates[*]}" >&2
    echo "setup: install one, or name it: PYTHON=/path/to/python make test" >&2
    return 1
}

stamp=.venv/made-from
if recipe | cmp -s - "$stamp" 2>/dev/null && is_new_enough .venv/bin/python; then
    echo "setup: .venv is up to date"
    exit
fi

rm -f "$stamp"
if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || ! is_new_enough .venv/bin/python; then
    python=$(find_python)
    echo "setup: creating .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear .venv
fi

echo "setup: installing dsf_models and what it needs into .venv (a minute or two the first time)"
if ! .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[train,dev]"; then
    echo "setup: pip failed. To see more: .venv/bin/python -m pip install -c constraints.txt -e '.[train,dev]'" >&2
    exit 1
fi

# Written last, so that an interrupted installation is taken up again.
recipe >"$stamp"
echo "setup: done"
