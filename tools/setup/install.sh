#!/bin/sh
# Install a lock file, and then the project itself, into .venv: install.sh LOCK
#
# Every file is checked against its hash. The project is built with the build tool from the lock
# (--no-build-isolation), so nothing is fetched that the lock does not name.
set -eu
cd "$(dirname "$0")/../.."
lock=$1

# A terminal gets pip's progress bars; a log gets a line, and pip's errors.
quiet=-qq
if [ -t 1 ]; then quiet=; fi

echo "==> Installing $(grep -c '==' "$lock") packages from $lock"
.venv/bin/python -m pip install $quiet --disable-pip-version-check --no-input --require-hashes -r "$lock"
# What the pages take from npm. Before the project, whose build would bring it too but bury the error.
if .venv/bin/python tools/web/build_hook.py --lacks-npm; then
    echo "==> Installing npm into .venv, for the scripts, fonts and icons of the pages"
    .venv/bin/python -m pip install $quiet --disable-pip-version-check --no-input --require-hashes -r tools/web/npm.lock
fi
.venv/bin/python tools/web/build_hook.py
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input \
    --no-deps --no-build-isolation --editable .
