#!/usr/bin/env bash
# Installs what building lamina needs and the machine lacks: a C toolchain, OpenSSL and zlib headers (for librdkafka).
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

command -v cargo >/dev/null 2>&1 ||
    fail 'cargo is missing. Install Rust: curl --proto =https --tlsv1.2 -sSf https://sh.rustup.rs | sh' 2

lacking=()
need() { lacking+=("$1"); }
command -v cc >/dev/null 2>&1 && command -v c++ >/dev/null 2>&1 && command -v make >/dev/null 2>&1 || need build-essential
command -v perl >/dev/null 2>&1 || need perl
if ! command -v pkg-config >/dev/null 2>&1; then
    need pkg-config
    need libssl-dev
    need zlib1g-dev
else
    pkg-config --exists openssl || need libssl-dev
    pkg-config --exists zlib || need zlib1g-dev
fi
[ ${#lacking[@]} -gt 0 ] || exit 0

install="apt-get install -y --no-install-recommends ${lacking[*]}"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "installing ${lacking[*]} (apt-get)"
    apt-get -qq update >&2
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $install -qq >&2
elif command -v apt-get >/dev/null 2>&1; then
    fail "building needs packages that are missing. Install them: sudo $install" 2
else
    say "note: building may need your system's packages for: ${lacking[*]}"
fi
