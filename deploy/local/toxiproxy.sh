#!/usr/bin/env bash
# Prints where the toxiproxy server is; installs it the first time, with Go.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
bin=$cache_dir/toxiproxy-$TOXIPROXY_VERSION

if [ ! -x "$bin/server" ]; then
    command -v go >/dev/null 2>&1 || fail 'Go is needed to install toxiproxy: https://go.dev/doc/install, or apt-get install golang-go' 2
    say "toxiproxy: installing $TOXIPROXY_VERSION (once)"
    GOBIN=$bin go install "github.com/Shopify/toxiproxy/v2/cmd/server@v$TOXIPROXY_VERSION" >&2
fi
echo "$bin/server"
