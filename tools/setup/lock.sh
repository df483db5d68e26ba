#!/bin/sh
# Write the lock files: names, versions and hashes, for every platform at once.
#
# Versions already locked stay as they are unless pyproject.toml rules them out; UPGRADE=yes takes
# the newest of everything. Where packages are looked up is uv's configuration, never a file here:
# a lock without addresses can be installed from any mirror, and the hashes say it is the same file.
set -eu
cd "$(dirname "$0")/../.."

upgrade=
if [ "${UPGRADE:-no}" = yes ]; then upgrade=--upgrade; fi

compile() { # compile OUTPUT OPTION...
    output=$1
    shift
    # 3.11 is named because uv would otherwise resolve from the running Python upwards.
    .venv/bin/python -m uv pip compile \
        --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet \
        $upgrade "$@" --output-file "$output"
    echo "$output: $(grep -c '==' "$output") packages"
}

compile requirements.lock pyproject.toml --group build
# The runtime lock constrains the other one, so installing both never changes a version.
compile requirements-dev.lock pyproject.toml --group build --group dev --extra cloud --constraint requirements.lock
# Apart from those: set-up takes it only where npm is missing.
compile tools/web/npm.lock --group pyproject.toml:npm
