#!/usr/bin/env bash
# Shows that lamina works with a Kafka broker that demands SASL and a Cassandra node that demands a password: starts both on
# ports of their own, runs the test, and stops them.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export LAMINA_RUN=${LAMINA_RUN:-$here/../../.run}/secured
export LAMINA_KAFKA_PORT=29092 LAMINA_KAFKA_CONTROLLER_PORT=29093 LAMINA_CASSANDRA_PORT=29042 LAMINA_CASSANDRA_STORAGE_PORT=27000
# shellcheck source=lib.sh
. "$here/lib.sh"
stop() { "$here/down.sh" kafka cassandra; }
trap stop EXIT
need_java
mkdir -p "$run_dir"

make_kafka kafka 127.0.0.1 1 "1@127.0.0.1:$controller_port" 1
jaas='org.apache.kafka.common.security.plain.PlainLoginModule required username="broker" password="of brokers"'
sed -i "s|PLAINTEXT://127.0.0.1:$LAMINA_KAFKA_PORT|SASL_PLAINTEXT://127.0.0.1:$LAMINA_KAFKA_PORT|
    s|PLAINTEXT:PLAINTEXT|SASL_PLAINTEXT:SASL_PLAINTEXT|" "$run_dir/kafka/server.properties"
cat >>"$run_dir/kafka/server.properties" <<END
inter.broker.listener.name=SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=$jaas user_broker="of brokers" user_lamina="of lamina";
END
run_kafka kafka 512m

make_cassandra cassandra 127.0.0.1 127.0.0.1
sed -i 's|^authenticator:.*|authenticator: PasswordAuthenticator|' "$run_dir/cassandra/conf/cassandra.yaml"
# The first superuser is made this long after the start; the default is ten seconds.
run_cassandra cassandra 1g -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.ring_delay_ms=100 \
    -Dcassandra.superuser_setup_delay_ms=1000
await kafka
await cassandra
cd "$root"
LAMINA_TEST_SECURED="127.0.0.1:$LAMINA_KAFKA_PORT,127.0.0.1:$LAMINA_CASSANDRA_PORT" \
    cargo test --workspace --test it -- --ignored --exact secured::a_password_opens_kafka_and_cassandra --nocapture
