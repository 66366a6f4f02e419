#!/usr/bin/env bash
# Prints where oha is, a public load tool that bench/load.py points at lamina; installs it the first time.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
place=$cache_dir/oha-$OHA_VERSION

if [ ! -x "$place/bin/oha" ]; then
    say "oha: building $OHA_VERSION (once, a few minutes)"
    CARGO_TARGET_DIR=$place/build cargo install oha --locked --version "$OHA_VERSION" --root "$place" >&2
    rm -rf "$place/build"
fi
echo "$place/bin/oha"
