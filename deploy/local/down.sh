#!/usr/bin/env bash
# Stops the Kafka broker and the Cassandra node that up.sh started, and nothing else. Their data stay in .run.
#
#   down.sh [kafka|cassandra]...      both if none is named
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
grace_s=30

stop() {
    local name=$1 pid begun=$SECONDS
    if ! pid=$(pid_of "$name"); then
        rm -f "$run_dir/$name/pid"
        say "$name: not running"
        return
    fi
    kill -TERM "$pid" 2>/dev/null || true
    while pid_of "$name" >/dev/null; do
        if [ $((SECONDS - begun)) -ge "$grace_s" ]; then
            say "$name: still there after $grace_s s, killing it"
            kill -KILL "$pid" 2>/dev/null || true
            sleep 1
            break
        fi
        sleep 0.2
    done
    rm -f "$run_dir/$name/pid"
    good "$name: stopped"
}

main() {
    local wanted=("$@") name
    [ $# -gt 0 ] || wanted=(cassandra kafka)
    if docker_answers && [ -n "$(compose ps --quiet 2>/dev/null)" ]; then
        compose rm --stop --force "${wanted[@]}" >&2
    fi
    [ -d "$run_dir" ] || {
        say 'nothing was started from here'
        return
    }
    exec 9>"$run_dir/lock"
    if command -v flock >/dev/null 2>&1; then flock -w 200 9 || fail "another up or down holds $run_dir/lock"; fi
    for name in "${wanted[@]}"; do stop "$name"; done
}

main "$@"
