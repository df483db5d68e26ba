#!/bin/sh
# Print the OpenBLAS that engine processes would preload, by asking the product itself.
# Without one, or without a .venv to ask with, it prints nothing.
set -u
cd "$(dirname "$0")/../.." || exit 0
[ -x .venv/bin/python ] || exit 0

.venv/bin/python -c '
from mlx_manager.mlx_server.workers.blas import find_openblas
print(find_openblas() or "")'
