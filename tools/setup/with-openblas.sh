#!/bin/sh
# Run a command with OpenBLAS in place of the single-threaded BLAS inside the Linux wheel of MLX:
#
#   with-openblas.sh COMMAND [ARGUMENT...]
#
# Training and prompts become about 20 times faster on a CPU. Where the library is missing, and on a
# Mac, the command runs as it is.
set -eu

for library in /usr/lib/*/openblas-pthread/libblas.so.3; do
    if [ -e "$library" ]; then
        LD_PRELOAD="$library${LD_PRELOAD:+:$LD_PRELOAD}"
        OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}
        export LD_PRELOAD OPENBLAS_NUM_THREADS
        break
    fi
done
exec "$@"
