#!/bin/sh
# Create .venv at the root of the checkout, or keep the one that is there and works.
set -eu
cd "$(dirname "$0")/../.."

# The scripts in an environment name its folder, so one that was moved counts as broken.
works() {
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 &&
        grep -qF "$(pwd -P)/.venv/" .venv/bin/pip 2>/dev/null
}

if works; then exit 0; fi
if ! python=$(sh tools/setup/find-python.sh 2>/dev/null); then
    sh tools/setup/system-packages.sh python
    python=$(sh tools/setup/find-python.sh)
fi
"$python" tools/setup/check_platform.py
echo "==> Creating .venv with $("$python" --version) ($python)"
"$python" -m venv --clear .venv
