#!/usr/bin/env bash
# Shows that lamina works with a Kafka broker that demands TLS and SASL (SCRAM) and a Cassandra node that demands TLS and a
# password: starts both on ports of their own, runs the test, and stops them.
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

# One self-signed certificate for both, and another that signs nothing of theirs.
keys=$run_dir/keys.p12
for name in keys others; do
    [ -f "$run_dir/$name.pem" ] && continue
    keytool -genkeypair -alias node -keyalg EC -dname CN=node -ext san=ip:127.0.0.1 -validity 3650 \
        -keystore "$run_dir/$name.p12" -storetype PKCS12 -storepass of-the-keys
    keytool -exportcert -rfc -alias node -keystore "$run_dir/$name.p12" -storepass of-the-keys -file "$run_dir/$name.pem"
done 2>>"$run_dir/keytool.log"

make_kafka kafka 127.0.0.1 1 "1@127.0.0.1:$controller_port" 1 \
    --add-scram 'SCRAM-SHA-512=[name=broker,password=of brokers]' --add-scram 'SCRAM-SHA-512=[name=lamina,password=of lamina]'
jaas='org.apache.kafka.common.security.scram.ScramLoginModule required username="broker" password="of brokers"'
sed -i "s|PLAINTEXT://127.0.0.1:$LAMINA_KAFKA_PORT|SASL_SSL://127.0.0.1:$LAMINA_KAFKA_PORT|
    s|PLAINTEXT:PLAINTEXT|SASL_SSL:SASL_SSL|" "$run_dir/kafka/server.properties"
cat >>"$run_dir/kafka/server.properties" <<END
inter.broker.listener.name=SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=$jaas;
ssl.keystore.type=PKCS12
ssl.keystore.location=$keys
ssl.keystore.password=of-the-keys
ssl.truststore.type=PKCS12
ssl.truststore.location=$keys
ssl.truststore.password=of-the-keys
END
run_kafka kafka 512m

make_cassandra cassandra 127.0.0.1 127.0.0.1
sed -i 's|^authenticator:.*|authenticator: PasswordAuthenticator|' "$run_dir/cassandra/conf/cassandra.yaml"
cat >>"$run_dir/cassandra/conf/cassandra.yaml" <<END
client_encryption_options:
  enabled: true
  optional: false
  keystore: $keys
  keystore_password: of-the-keys
  store_type: PKCS12
END
# The first superuser is made this long after the start; the default is ten seconds.
run_cassandra cassandra 1g -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.ring_delay_ms=100 \
    -Dcassandra.superuser_setup_delay_ms=1000
for port in "$LAMINA_KAFKA_PORT" "$LAMINA_CASSANDRA_PORT"; do
    begun=$SECONDS
    until port_open "$port"; do
        [ $((SECONDS - begun)) -lt "$wait_s" ] || fail "nothing listens on port $port after $wait_s s: see $run_dir"
        sleep 0.5
    done
done
cd "$root"
LAMINA_TEST_SECURED="127.0.0.1:$LAMINA_KAFKA_PORT,127.0.0.1:$LAMINA_CASSANDRA_PORT,$run_dir/keys.pem,$run_dir/others.pem" \
    cargo test --workspace --test it -- --ignored --exact secured::a_password_opens_kafka_and_cassandra --nocapture
