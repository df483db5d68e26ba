#!/bin/sh
# Add system packages that make things better, where that is possible without asking anybody.
#
#   system-packages.sh python   what Debian's Python lacks to create an environment
#   system-packages.sh serve    OpenBLAS and a C++ compiler
#   system-packages.sh test     those two, and a browser for the tests of the pages
#
# Whatever goes wrong is said in a line, and the exit status is 0: the caller goes on without.
# SYSTEM_PACKAGES=no skips it all.
set -u
purpose=${1:-serve}

[ "${SYSTEM_PACKAGES:-yes}" != no ] || exit 0
[ "$(uname -s)" = Linux ] || exit 0

missing=
reasons=
want() { # want PACKAGE REASON
    missing="$missing $1"
    reasons="$reasons${reasons:+; }$1 $2"
}

has_openblas() {
    [ -n "$(sh "$(dirname "$0")/find-openblas.sh")" ]
}

has_browser() {
    for browser in chromium chromium-browser google-chrome google-chrome-stable; do
        ! command -v "$browser" >/dev/null 2>&1 || return 0
    done
    return 1
}

lacks_ensurepip() {
    command -v python3 >/dev/null 2>&1 && ! python3 -c 'import ensurepip' >/dev/null 2>&1
}

if [ "$purpose" = python ]; then
    ! lacks_ensurepip || want python3-venv "creates Python environments"
else
    has_openblas || want libopenblas0-pthread "reads prompts about 20 times faster on a CPU"
    command -v g++ >/dev/null 2>&1 || want g++ "lets MLX compile fused operations"
fi
if [ "$purpose" = test ]; then
    has_browser || want chromium "runs the tests of the pages"
fi
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    as_root="sudo -n"
    if ! sudo -n true >/dev/null 2>&1; then as_root=no; fi
fi
if [ "$as_root" = no ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "==> Not installed here, and worth adding by hand: $reasons"
    exit 0
fi

# `timeout` bounds an unreachable mirror; apt's own time-outs come in dozens.
bounded() {
    if command -v timeout >/dev/null 2>&1; then timeout 600 "$@"; else "$@"; fi
}
apt() {
    bounded $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq \
        -o Acquire::Retries=1 -o DPkg::Lock::Timeout=60 "$@" </dev/null
}

echo "==> Adding system packages (SYSTEM_PACKAGES=no leaves them out): $reasons"
apt update >/dev/null 2>&1
for package in $missing; do
    if ! output=$(apt install -y --no-install-recommends "$package" 2>&1); then
        echo "$output" | tail -n 3
        echo "==> apt-get could not install $package; going on without it"
    fi
done
exit 0
