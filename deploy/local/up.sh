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
wait_s=180

need_java() {
    local version=''
    if command -v java >/dev/null 2>&1; then
        version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    fi
    if [ "${version:-0}" -ge 17 ] && command -v mvn >/dev/null 2>&1; then return; fi
    local install='apt-get install -y --no-install-recommends openjdk-17-jre-headless maven'
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say 'installing Java 17 and Maven (apt-get)'
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive $install -qq; } >&2 && return
    fi
    fail "Java 17 or newer and Maven are needed to start Kafka and Cassandra. Install them, e.g.: sudo $install" 2
}

# Prints the folder with a backend's jars, fetching them the first time.
jars_of() {
    local name=$1 version=$2 jars=$cache_dir/jars/$1-$2
    if [ ! -d "$jars" ]; then
        say "$name: fetching the jars of $version by Maven (once, about 50 MB)"
        local part=$jars.part.$$ output
        output=$(mvn -q -B -f "$here/pom.xml" -P "$name" -DincludeScope=runtime -DoutputDirectory="$part" \
            "org.apache.maven.plugins:maven-dependency-plugin:$MAVEN_DEPENDENCY_PLUGIN_VERSION:copy-dependencies" 2>&1) || {
            rm -rf "$part"
            printf '%s\n' "$output" >&2
            fail "Maven could not fetch $name $version, see above; a proxy or mirror is named in ~/.m2/settings.xml"
        }
        mv "$part" "$jars" 2>/dev/null || rm -rf "$part"
    fi
    echo "$jars"
}

# launch NAME ARGUMENTS-OF-JAVA...: in the background, its own session, output to the log.
launch() {
    local name=$1 dir=$run_dir/$1
    shift
    # The lock (descriptor 9) must not be held by the daemon.
    (cd "$dir" && exec setsid java "-Dlamina.backend=$dir" "$@" >"$dir/log" 2>&1 </dev/null 9>&-) &
    echo $! >"$dir/pid"
}

start_kafka() {
    local dir=$run_dir/kafka jars
    jars=$(jars_of kafka "$KAFKA_VERSION")
    mkdir -p "$dir"
    sed "s|@PORT@|$LAMINA_KAFKA_PORT|g; s|@CONTROLLER_PORT@|$controller_port|g; s|@DATA@|$dir/data|" \
        "$here/server.properties" >"$dir/server.properties"
    if [ ! -f "$dir/data/meta.properties" ]; then
        java -cp "$jars/*" kafka.tools.StorageTool format -t "$(java -cp "$jars/*" kafka.tools.StorageTool random-uuid 2>/dev/null)" \
            -c "$dir/server.properties" >"$dir/log" 2>&1 || fail "Kafka could not format $dir/data: $(tail -n 3 "$dir/log")"
    fi
    launch kafka -Xms256m -Xmx512m -XX:+UseG1GC -Dorg.slf4j.simpleLogger.showDateTime=true \
        -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS -cp "$jars/*" kafka.Kafka "$dir/server.properties"
}

start_cassandra() {
    local dir=$run_dir/cassandra jars
    jars=$(jars_of cassandra "$CASSANDRA_VERSION")
    mkdir -p "$dir/conf" "$dir/data"
    sed "s|@PORT@|$LAMINA_CASSANDRA_PORT|; s|@STORAGE_PORT@|$storage_port|; s|@DATA@|$dir/data|" \
        "$here/cassandra.yaml" >"$dir/conf/cassandra.yaml"
    cp "$here/cassandra-rackdc.properties" "$here/logback.xml" "$dir/conf/"
    # The last three: a lone node need not wait for others, and tests make and drop many tables.
    launch cassandra "@$here/cassandra-jvm17.options" -Xms1g -Xmx1g -XX:+UseG1GC -Djava.net.preferIPv4Stack=true \
        -Dcassandra.config="file://$dir/conf/cassandra.yaml" -Dcassandra.storagedir="$dir/data" \
        -Dlogback.configurationFile="$dir/conf/logback.xml" -Dcassandra-foreground=yes \
        -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.ring_delay_ms=100 \
        -cp "$dir/conf:$jars/*" org.apache.cassandra.service.CassandraDaemon
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

await() {
    local name=$1 begun=$SECONDS told=$SECONDS
    until answers "$name"; do
        if ! pid_of "$name" >/dev/null; then
            tail -n 25 "$run_dir/$name/log" >&2
            fail "$name ended while starting; the end of its log is above"
        elif [ $((SECONDS - begun)) -ge "$wait_s" ]; then
            tail -n 25 "$run_dir/$name/log" >&2
            fail "$name does not answer after $wait_s s; the end of its log is above"
        elif [ $((SECONDS - told)) -ge 10 ]; then
            say "$name: still starting ($((SECONDS - begun)) s)"
            told=$SECONDS
        fi
        sleep 0.5
    done
    good "$name: up on 127.0.0.1:$(port_of "$name")"
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
