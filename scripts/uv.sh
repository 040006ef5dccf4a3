#!/bin/sh
# Print the path of a uv to use, fetching one into .uv/ with pip if the machine has none.
set -eu
cd "$(dirname "$0")/.."
if command -v uv >/dev/null 2>&1; then
    command -v uv
    exit 0
fi
if [ ! -x .uv/bin/uv ]; then
    if ! python3 -m pip --version >/dev/null 2>&1; then
        # Debian ships python3 without pip.
        if [ "$(id -u)" = 0 ]; then as_root=""; else as_root="sudo"; fi
        if ! command -v apt-get >/dev/null 2>&1; then
            echo "uv is missing, and so is pip to fetch it: install uv, then run make again" >&2
            exit 1
        fi
        $as_root apt-get update -qq >&2
        $as_root apt-get install -y -qq python3-pip >&2
    fi
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
        --target .uv uv >&2
fi
echo "$PWD/.uv/bin/uv"
