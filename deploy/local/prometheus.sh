#!/usr/bin/env bash
# Prints a folder with clients of Prometheus, which tests point at lamina: `promtool`, and `python` with
# prometheus-api-client; fetches them the first time.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
place=$cache_dir/prometheus-clients-$PROMETHEUS_API_CLIENT_VERSION

if [ ! -x "$place/promtool" ]; then
    mkdir -p "$place"
    if command -v promtool >/dev/null 2>&1; then
        ln -sf "$(command -v promtool)" "$place/promtool"
    elif command -v apt-get >/dev/null 2>&1; then
        say 'promtool: unpacking it from the Debian package prometheus (once)'
        part=$(mktemp -d)
        (cd "$part" && { apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }; } >&2 &&
            dpkg -x prometheus_*.deb . && cp usr/bin/promtool "$place/promtool") ||
            fail 'the Debian package prometheus, which holds promtool, cannot be fetched' 2
        rm -rf "$part"
    else
        fail 'promtool is needed: install Prometheus' 2
    fi
fi
if [ ! -e "$place/python" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        need_packages 'Python 3 with venv is needed for a client of Prometheus, which tests point at lamina' python3-venv
    say 'prometheus-api-client: installing its Python package (once)'
    python3 -m venv "$place/venv" >&2
    "$place/venv/bin/pip" install --quiet "prometheus-api-client==$PROMETHEUS_API_CLIENT_VERSION" >&2
    printf '#!/bin/sh\nexec "%s/venv/bin/python3" "$@"\n' "$place" >"$place/python"
    chmod +x "$place/python"
fi
echo "$place"
