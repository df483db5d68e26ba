#!/bin/sh
# Print the newest Python on this machine that MLX Manager is made for, or say what is missing.
# PYTHON=/path/to/python chooses one.
set -eu

fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

can_make_environments() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

without_venv=
# 3.14 is the last choice: nothing shows that it works, and pyproject.toml does not name it.
for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python python3.14}; do
    fits "$candidate" || continue
    if can_make_environments "$candidate"; then
        command -v "$candidate"
        exit 0
    fi
    without_venv=${without_venv:-$candidate}
done

{
    if [ -n "$without_venv" ]; then
        echo "$without_venv cannot create virtual environments: its venv or ensurepip module is missing."
        echo "On Debian and Ubuntu they are the package python3-venv; install it and run make again."
    elif [ -n "${PYTHON:-}" ]; then
        echo "PYTHON=$PYTHON is not a Python 3.11 or newer. Name another one, or leave PYTHON unset."
    else
        echo "MLX Manager needs Python 3.11 or newer, and none was found on the PATH."
        echo "Install one, or name it: make setup PYTHON=/path/to/python3.12"
    fi
} >&2
exit 1
