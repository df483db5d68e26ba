#!/bin/sh
# Run a command with OpenBLAS in place of the single-threaded BLAS inside the Linux wheel of MLX:
#
#   with-openblas.sh COMMAND [ARGUMENT...]
#
# Training and prompts become about 20 times faster on a CPU. Where the library is missing, and on a
# Mac, the command runs as it is. How many threads it takes is left to OpenBLAS, or to whoever sets
# OPENBLAS_NUM_THREADS: a number given here would reach the engines that a benchmark starts.
set -eu

library=$(sh "$(dirname "$0")/find-openblas.sh")
if [ -n "$library" ]; then
    LD_PRELOAD="$library${LD_PRELOAD:+:$LD_PRELOAD}"
    export LD_PRELOAD
fi
exec "$@"
