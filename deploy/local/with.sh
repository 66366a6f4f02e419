#!/usr/bin/env bash
# Runs a command with the backends up, and stops afterwards those that were not up before.
#
#   with.sh COMMAND...        LAMINA_SKIP_REAL=1 runs the command alone
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"

if [ -n "${LAMINA_SKIP_REAL:-}" ]; then
    say 'LAMINA_SKIP_REAL is set: leaving out the tests against a real broker and node'
    exec "$@"
fi

started=()
for name in kafka cassandra; do answers "$name" || started+=("$name"); done
if [ ${#started[@]} -gt 0 ]; then
    trap '"$here/down.sh" "${started[@]}"' EXIT
    "$here/up.sh" "${started[@]}"
fi
export LAMINA_TEST_KAFKA=${LAMINA_TEST_KAFKA:-127.0.0.1:$LAMINA_KAFKA_PORT}
export LAMINA_TEST_CASSANDRA=${LAMINA_TEST_CASSANDRA:-127.0.0.1:$LAMINA_CASSANDRA_PORT}
"$@"
