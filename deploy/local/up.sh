#!/usr/bin/env bash
# Brings up a Kafka broker and a Cassandra node on loopback, in containers where Docker answers, else from their
# published jars. Starts only what is missing; run again, it says so and changes nothing.
#
#   up.sh [kafka|cassandra]...        both if none is named
#
# Environment: LAMINA_RUN (state, default .run), LAMINA_CACHE (jars), LAMINA_KAFKA_PORT, LAMINA_CASSANDRA_PORT,
# LAMINA_KAFKA_CONTROLLER_PORT, LAMINA_CASSANDRA_STORAGE_PORT, LAMINA_NO_DOCKER=1 (jars in any case).
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
start_kafka() {
    make_kafka kafka 127.0.0.1 1 "1@127.0.0.1:$controller_port" 1
    run_kafka kafka 512m
}

start_cassandra() {
    make_cassandra cassandra 127.0.0.1 127.0.0.1
    # A lone node need not wait for others.
    run_cassandra cassandra 1g -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.ring_delay_ms=100
}

# Decides what is to be done about one backend; prints a line on each outcome.
begin() {
    local name=$1 port
    port=$(port_of "$name")
    if pid_of "$name" >/dev/null; then
        started+=("$name") # still starting, or up: the wait below tells
    elif answers "$name"; then
        good "$name: 127.0.0.1:$port is already served by one that was not started from here; using it"
    elif port_open "$port"; then
        fail "$name: port $port is taken by something that is not $name. Stop that, or choose another: LAMINA_$(tr '[:lower:]' '[:upper:]' <<<"$name")_PORT=..."
    else
        need_java
        say "$name: starting on 127.0.0.1:$port (log: $run_dir/$name/log)"
        "start_$name"
        started+=("$name")
    fi
}

main() {
    local wanted=("$@") started=() name
    [ $# -gt 0 ] || wanted=(kafka cassandra)
    for name in "${wanted[@]}"; do
        case $name in kafka | cassandra) ;; *) fail "no backend is called $name; there are kafka and cassandra" 2 ;; esac
    done
    if docker_answers; then
        say 'docker: starting containers (deploy/compose.yaml)'
        compose up --detach --wait --wait-timeout "$wait_s" "${wanted[@]}" >&2 || fail 'docker compose could not start them'
        good "up on 127.0.0.1: ${wanted[*]}"
        return
    fi
    mkdir -p "$run_dir"
    exec 9>"$run_dir/lock"
    if command -v flock >/dev/null 2>&1; then flock -w "$wait_s" 9 || fail "another up or down holds $run_dir/lock"; fi
    for name in "${wanted[@]}"; do begin "$name"; done
    for name in ${started[@]+"${started[@]}"}; do await "$name"; done
}

main "$@"
