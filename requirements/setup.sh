#!/bin/bash
# Makes .venv from requirements/dev.lock and installs esteira into it. Called by `make setup`; safe to run again after a failure.
#   setup.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

python="${1:-}"
if [ -n "$python" ]; then
    fits "$python" || { echo "setup: Python must be 3.11, 3.12 or 3.13, but $python is not: give another PYTHON" >&2; exit 2; }
else
    for candidate in python3 python3.13 python3.12 python3.11; do
        if fits "$candidate"; then python="$candidate"; break; fi
    done
    [ -n "$python" ] || { echo "setup: needs Python 3.11, 3.12 or 3.13 on PATH: install one, or give PYTHON=/path" >&2; exit 2; }
fi

. requirements/index.sh

echo "setup: $("$python" --version) -> .venv"
if command -v uv >/dev/null; then
    uv=uv
    uv venv --quiet --clear --python "$("$python" -c 'import sys; print(sys.executable)')" .venv
else
    # The lock pins uv itself; pip fetches that one, checked by hash.
    "$python" -m venv --clear .venv || { echo "setup: needs the venv module (Debian: python3-venv) or uv on PATH" >&2; exit 2; }
    awk '/^[^ #]/ {take = /^uv==/} take' requirements/dev.lock > .venv/uv.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.lock
    uv=.venv/bin/uv
fi
export VIRTUAL_ENV="$PWD/.venv"
"$uv" pip sync --quiet --require-hashes requirements/dev.lock
"$uv" pip install --quiet --no-deps --no-build-isolation --editable .
echo "setup: $(.venv/bin/esteira --version) in .venv, $(wc -l < <(.venv/bin/uv pip list --quiet 2>/dev/null)) packages"
