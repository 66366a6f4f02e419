#!/usr/bin/env bash
# Prints a folder with `schemathesis` and its `python`, which a test points at lamina; installs them the first time.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
place=$cache_dir/schemathesis-$SCHEMATHESIS_VERSION

if [ ! -e "$place/bin/schemathesis" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        need_packages 'Python 3 with venv is needed for schemathesis, which a test points at lamina' python3-venv
    say 'schemathesis: installing its Python package (once)'
    python3 -m venv "$place" >&2
    "$place/bin/pip" install --quiet "schemathesis==$SCHEMATHESIS_VERSION" >&2
fi
echo "$place/bin"
