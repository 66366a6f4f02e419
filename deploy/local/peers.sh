#!/usr/bin/env bash
# Prints the Python that has the peers of bench/ (DuckDB, DataFusion); installs them the first time.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
place=$cache_dir/bench-venv
wanted=$(dirname "$0")/../../bench/requirements.txt

if ! cmp -s "$wanted" "$place/installed.txt"; then
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        need_packages 'Python 3 with venv is needed for DuckDB, which reads the archive in tests and benchmarks' python3-venv
    say 'DuckDB and DataFusion: installing their Python packages (once)'
    python3 -m venv "$place" >&2
    "$place/bin/pip" install --quiet --requirement "$wanted" >&2
    cp "$wanted" "$place/installed.txt"
fi
echo "$place/bin/python3"
