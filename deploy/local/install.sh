#!/bin/sh
# Makes .venv from requirements.lock with uv; `make` runs it when the lock has changed. Needs Python 3.13 and a package index.
set -eu
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*" >&2; }

# A `uv` on PATH may be a version manager's shim that refuses this folder's .python-version: ask before trusting it.
find_uv() {
    for candidate in uv "$PWD/.uv/bin/uv"; do
        if "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    say "uv is not installed here: putting one into .uv/"
    for python in python3.13 python3 python /usr/bin/python3 /usr/local/bin/python3 \
        "$HOME"/.pyenv/versions/3.*/bin/python3; do
        if "$python" -m pip --version >/dev/null 2>&1 &&
            "$python" -m pip install --quiet --root-user-action=ignore --upgrade --target .uv uv >&2; then
            echo "$PWD/.uv/bin/uv"
            return
        fi
    done
    say "error: no Python with pip was found to install uv with. Install uv (its documentation says how) and try again."
    exit 1
}

uv=$(find_uv)
wanted=$(head -n 1 .python-version)
if ! .venv/bin/python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$wanted')" 2>/dev/null; then
    say "making .venv with Python $wanted"
    "$uv" venv --quiet --clear --python "$wanted" .venv || {
        say "error: Python $wanted was not found and could not be fetched. Install it and try again."
        exit 1
    }
fi
say "installing the packages of requirements.lock"
# The lock is complete and hashed (it overrides one package's own wish for a newer duckdb): nothing is resolved here.
"$uv" pip sync --python .venv/bin/python requirements.lock
# The project itself: importable from anywhere, with its console scripts. Its build backend is in the lock.
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
touch .venv/.installed
