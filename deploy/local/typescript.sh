#!/usr/bin/env bash
# Prints the folder of the TypeScript client, with what it is compiled with installed as its lock file says.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
client=$root/clients/typescript

if ! command -v npm >/dev/null 2>&1; then
    [ -n "${CI:-}" ] && need_packages 'Node.js 20 and npm are needed for the TypeScript client' nodejs npm
    say 'left out: the TypeScript client, for want of Node.js 20 and npm'
    exit 0
fi
if ! cmp -s "$client/package-lock.json" "$client/node_modules/.lamina-lock"; then
    say 'TypeScript client: installing what it is compiled with'
    (cd "$client" && npm ci --no-audit --no-fund --silent) >&2
    cp "$client/package-lock.json" "$client/node_modules/.lamina-lock"
fi
echo "$client"
