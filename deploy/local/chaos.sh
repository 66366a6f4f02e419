#!/usr/bin/env bash
# Plays scenarios of lamina-chaos, which must be built; lists them first. `ci` gets the pair of backends that up.sh starts.
#
#   chaos.sh SCENARIO...        LAMINA_CHAOS_OPTIONS are handed on, e.g. "--rate 1000 --seed 7"
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
target=${CARGO_TARGET_DIR:-$root/target}/debug

play() {
    # shellcheck disable=SC2086
    "$@" "$target/lamina-chaos" "${scenarios[@]}" --lamina "$target/lamina" --root "$root" --out "$run_dir/chaos" \
        ${LAMINA_CHAOS_OPTIONS:-}
}

scenarios=("$@")
"$target/lamina-chaos" >&2
case " $* " in *' ci '* | *' all '*) play "$here/with.sh" ;; *) play ;; esac
