#!/usr/bin/env bash
# Prints where s3s-fs is, a server that speaks S3 over a folder; installs it the first time.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
place=$cache_dir/s3s-fs-$S3S_VERSION

if [ ! -x "$place/bin/s3s-fs" ]; then
    say "s3s-fs: building $S3S_VERSION (once, a few minutes)"
    CARGO_TARGET_DIR=$place/build cargo install s3s-fs --locked --version "$S3S_VERSION" --features binary --root "$place" >&2
    rm -rf "$place/build"
fi
echo "$place/bin/s3s-fs"
