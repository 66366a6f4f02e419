#!/usr/bin/env bash
# Clusters on loopback whose nodes can be hurt one by one: Cassandra (replication factor 3) and Kafka (KRaft, replication
# factor 3, two in sync). Node i listens on the i-th of LAMINA_CLUSTER_HOSTS; ports are those of up.sh.
#
#   cluster.sh up kafka|cassandra NODES     start NODES nodes one after another, and wait until each answers
#   cluster.sh start NODE                   e.g. cassandra-2: start one that is down, without waiting
#   cluster.sh wait NODE                    until it answers
#   cluster.sh kill|pause|resume NODE       SIGKILL, SIGSTOP, SIGCONT
#   cluster.sh status                       which nodes run
#   cluster.sh down [kafka|cassandra]       stop all nodes (of that kind) and remove their data
#
# The i-th Cassandra node is in the i-th data centre of LAMINA_CLUSTER_DCS, or in dc1.
# Kafka nodes have a second listener on port + 2 that is advertised as port + 3: where a proxy may stand.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
read -ra hosts <<<"${LAMINA_CLUSTER_HOSTS:-127.0.0.11 127.0.0.12 127.0.0.13}"
read -ra centres <<<"${LAMINA_CLUSTER_DCS:-}"

host_of() {
    local host=${hosts[$((${1##*-} - 1))]:-}
    [ -n "$host" ] || fail "LAMINA_CLUSTER_HOSTS names no address for $1" 2
    echo "$host"
}

# make NAME NODES
make_node() {
    local node=$1 nodes=$2 id=${1##*-} host i voters=()
    host=$(host_of "$node")
    case $node in
        kafka-*)
            for ((i = 1; i <= nodes; i++)); do voters+=("$i@$(host_of "kafka-$i"):$controller_port"); done
            make_kafka "$node" "$host" "$id" "$(IFS=,; echo "${voters[*]}")" "$nodes"
            local port=$LAMINA_KAFKA_PORT settings=$run_dir/$node/server.properties
            # Of a setting that stands twice the last counts. Elections must end on a machine that is busy, too.
            cat >>"$settings" <<END
listeners=PLAINTEXT://$host:$port,CONTROLLER://$host:$controller_port,PROXIED://$host:$((port + 2))
advertised.listeners=PLAINTEXT://$host:$port,PROXIED://$host:$((port + 3))
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.quorum.election.timeout.ms=4000
controller.quorum.fetch.timeout.ms=6000
END
            ;;
        cassandra-*)
            make_cassandra "$node" "$host" "$(host_of cassandra-1)"
            sed -i "s/^dc=.*/dc=${centres[id - 1]:-dc1}/" "$run_dir/$node/conf/cassandra-rackdc.properties"
            ;;
        *) fail "no node is called $node; there are kafka-1, cassandra-1 and so on" 2 ;;
    esac
}

start_node() {
    if pid_of "$1" >/dev/null; then return; fi
    # Nodes that live for minutes are up sooner without the optimising compiler.
    case $1 in
        kafka-*) run_kafka "$1" 400m -XX:TieredStopAtLevel=1 ;;
        cassandra-*)
            run_cassandra "$1" 768m -XX:TieredStopAtLevel=1 -Dcassandra.ring_delay_ms=2000 -Dcassandra.consistent.rangemovement=false \
                -Dcassandra.skip_wait_for_gossip_to_settle=0
            ;;
    esac
}

up() {
    local kind=$1 nodes=$2 i
    need_java
    for ((i = 1; i <= nodes; i++)); do
        make_node "$kind-$i" "$nodes"
        start_node "$kind-$i"
        # Cassandra nodes join one after another; Kafka's form a quorum together.
        [ "$kind" = kafka ] || await "$kind-$i" "$(host_of "$kind-$i")"
    done
    [ "$kind" != kafka ] || for ((i = 1; i <= nodes; i++)); do await "kafka-$i" "$(host_of "kafka-$i")"; done
}

# nodes [kafka|cassandra]: those that were made, running or not
nodes() {
    local dir
    for dir in "$run_dir"/*-[0-9]; do
        case ${dir##*/} in ${1:-*}-*) [ ! -d "$dir" ] || basename "$dir" ;; esac
    done
}

signal() {
    local pid
    pid=$(pid_of "$2") || fail "$2 does not run"
    kill "-$1" "$pid"
}

main() {
    mkdir -p "$run_dir"
    local node pid
    case "${1:-}" in
        up) up "$2" "$3" ;;
        start) start_node "$2" ;;
        wait) await "$2" "$(host_of "$2")" ;;
        kill) signal KILL "$2" ;;
        pause) signal STOP "$2" ;;
        resume) signal CONT "$2" ;;
        status) for node in $(nodes); do echo "$node $(host_of "$node") $(pid_of "$node" || echo down)"; done ;;
        down)
            # Their data go too, so they need no time to end in order.
            for node in $(nodes "${2:-}"); do
                if pid=$(pid_of "$node"); then kill -KILL "$pid"; fi
                rm -rf "${run_dir:?}/$node"
            done
            ;;
        *) fail "usage: $(sed -n 's/^#   //p' "$0")" 2 ;;
    esac
}

main "$@"
