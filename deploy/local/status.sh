#!/usr/bin/env bash
# Prints what runs where, one line per backend. Exit code 0 if both answer, else 1.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

all=0
for name in kafka cassandra; do
    where=127.0.0.1:$(port_of "$name")
    if pid=$(pid_of "$name"); then origin="process $pid, $run_dir/$name"; else origin='not started from here'; fi
    if answers "$name"; then
        printf '%-10s up        %s  (%s)\n' "$name" "$where" "$origin"
    elif [ -n "$pid" ]; then
        printf '%-10s starting  %s  (%s)\n' "$name" "$where" "$origin"
        all=1
    else
        printf '%-10s down      %s\n' "$name" "$where"
        all=1
    fi
done
exit "$all"
