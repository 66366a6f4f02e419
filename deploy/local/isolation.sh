#!/usr/bin/env bash
# Shows on a Cassandra cluster of two data centres that batch leaves the online one alone: nodes 1 and 2 are in dc1, node 3
# is in analytics. Starts the cluster and a Kafka broker, runs the test that reads the nodes' own counters, and stops both.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
export LAMINA_CLUSTER_DCS="dc1 dc1 analytics"
read -ra hosts <<<"${LAMINA_CLUSTER_HOSTS:-127.0.0.11 127.0.0.12 127.0.0.13}"
own_kafka=
stop() {
    "$here/cluster.sh" down cassandra
    [ -z "$own_kafka" ] || "$here/down.sh" kafka
}
trap stop EXIT
answers kafka || { own_kafka=1 && "$here/up.sh" kafka; }
"$here/cluster.sh" up cassandra 3
nodes=("${hosts[@]/%/:$LAMINA_CASSANDRA_PORT}")
cd "$root"
LAMINA_TEST_CLUSTER=$(IFS=,; echo "${nodes[*]:0:3}") \
    cargo test --workspace --test it -- --ignored --exact isolation::batch_leaves_the_online_data_centre_alone --nocapture
