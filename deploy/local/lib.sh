# shellcheck shell=bash
# What up.sh, down.sh, status.sh and cluster.sh share: places, ports, messages, probes. Sourced, never run.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=versions.env
. "$here/versions.env"

run_dir=${LAMINA_RUN:-$root/.run}
case $run_dir in /*) ;; *) run_dir=$PWD/$run_dir ;; esac
cache_dir=${LAMINA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lamina}
export LAMINA_KAFKA_PORT=${LAMINA_KAFKA_PORT:-19092}
export LAMINA_CASSANDRA_PORT=${LAMINA_CASSANDRA_PORT:-19042}
controller_port=${LAMINA_KAFKA_CONTROLLER_PORT:-19093}
storage_port=${LAMINA_CASSANDRA_STORAGE_PORT:-17000}
# How long a backend may take to start.
wait_s=180

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
    red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    red='' green='' plain=''
fi
say() { printf '%s\n' "$*" >&2; }
good() { printf '%s%s%s\n' "$green" "$*" "$plain" >&2; }
# fail MESSAGE [EXIT-CODE]
fail() {
    printf '%serror:%s %s\n' "$red" "$plain" "$1" >&2
    exit "${2:-1}"
}

# Whether containers can be used: a Docker daemon that answers, and its compose plugin.
docker_answers() {
    [ -z "${LAMINA_NO_DOCKER:-}" ] && command -v docker >/dev/null 2>&1 &&
        timeout 5 docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1
}
compose() { docker compose --project-name lamina-local --file "$root/deploy/compose.yaml" "$@"; }

port_of() {
    case ${1%%-*} in kafka) echo "$LAMINA_KAFKA_PORT" ;; cassandra) echo "$LAMINA_CASSANDRA_PORT" ;; esac
}

port_open() { timeout 2 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1" 2>/dev/null; }

# exchange HOST PORT REQUEST BYTES: sends the request (printf escapes), prints the first bytes of the answer in hex.
exchange() {
    timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1"; printf "$2" >&3; head -c "$3" <&3' "$1" "$2" "$3" "$4" 2>/dev/null |
        od -An -v -tx1 | tr -d ' \n'
}

# answers NAME [HOST]: whether the service itself answers on its port, not just anything.
answers() {
    local reply host=${2:-127.0.0.1}
    case ${1%%-*} in
        # ApiVersions v0, correlation id 7, no client id: the answer repeats the correlation id and has no error.
        kafka)
            reply=$(exchange "$host" "$LAMINA_KAFKA_PORT" '\0\0\0\012\0\022\0\0\0\0\0\07\377\377' 10)
            [ "${reply:8}" = 000000070000 ]
            ;;
        # OPTIONS in protocol version 4: the answer is SUPPORTED (opcode 6).
        cassandra)
            reply=$(exchange "$host" "$LAMINA_CASSANDRA_PORT" '\004\0\0\0\005\0\0\0\0' 5)
            [ "${reply:0:2}${reply:8:2}" = 8406 ]
            ;;
    esac
}

# Prints the process id of a backend that was started from here and still runs.
pid_of() {
    local pid
    pid=$(cat "$run_dir/$1/pid" 2>/dev/null) || return 1
    [ -n "$pid" ] || return 1
    # Process ids are used again: only a process that carries our mark is ours.
    case $(command_of "$pid") in
        *"-Dlamina.backend=$run_dir/$1 "*) echo "$pid" ;;
        *) return 1 ;;
    esac
}

command_of() {
    if [ -d /proc/self ]; then
        { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null || true
    else
        ps -o command= -p "$1" 2>/dev/null || true
    fi
}

# Installs Debian packages where it may; otherwise says what they are needed for, and stops.
#
#   need_packages PURPOSE PACKAGE...
need_packages() {
    local purpose=$1
    shift
    local install="apt-get install -y --no-install-recommends $*"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing $* (apt-get)"
        # shellcheck disable=SC2086
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive $install -qq; } >&2 && return
    fi
    fail "$purpose. Install what is missing, e.g.: sudo $install" 2
}

need_java() {
    local version=''
    if command -v java >/dev/null 2>&1; then
        version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    fi
    if [ "${version:-0}" -ge 17 ] && command -v mvn >/dev/null 2>&1; then return; fi
    need_packages 'Java 17 or newer and Maven are needed to start Kafka and Cassandra' openjdk-17-jre-headless maven
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
    (cd "$dir" && exec setsid java "-Dlamina.backend=$dir" "$@" >>"$dir/log" 2>&1 </dev/null 9>&-) &
    local pid=$!
    echo "$pid" >"$dir/pid"
    # Until the shell in between has become java, it does not carry our mark.
    while kill -0 "$pid" 2>/dev/null && ! pid_of "$name" >/dev/null; do sleep 0.05; done
}

# make_kafka NAME HOST NODE-ID VOTERS REPLICAS MORE-OPTIONS-OF-FORMAT...: settings and a formatted data folder of one broker.
make_kafka() {
    local dir=$run_dir/$1 jars
    jars=$(jars_of kafka "$KAFKA_VERSION")
    mkdir -p "$dir"
    sed "s|@HOST@|$2|g; s|@NODE@|$3|; s|@VOTERS@|$4|; s|@REPLICAS@|$5|; s|@IN_SYNC@|$((($5 + 1) / 2))|
        s|@PORT@|$LAMINA_KAFKA_PORT|g; s|@CONTROLLER_PORT@|$controller_port|g; s|@DATA@|$dir/data|" \
        "$here/server.properties" >"$dir/server.properties"
    shift 5
    [ -f "$dir/data/meta.properties" ] || java -cp "$jars/*" kafka.tools.StorageTool format \
        -t "$KAFKA_CLUSTER_ID" -c "$dir/server.properties" "$@" >"$dir/log" 2>&1 ||
        fail "Kafka could not format $dir/data: $(tail -n 3 "$dir/log")"
}

# run_kafka NAME HEAP MORE-OPTIONS-OF-JAVA...
run_kafka() {
    local name=$1 heap=$2 jars
    shift 2
    jars=$(jars_of kafka "$KAFKA_VERSION")
    launch "$name" "-Xmx$heap" -XX:+UseG1GC -Dorg.slf4j.simpleLogger.showDateTime=true \
        -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS "$@" -cp "$jars/*" kafka.Kafka "$run_dir/$name/server.properties"
}

# make_cassandra NAME HOST SEED: settings of one node.
make_cassandra() {
    local dir=$run_dir/$1
    mkdir -p "$dir/conf" "$dir/data"
    sed "s|@HOST@|$2|; s|@SEED@|$3|; s|@PORT@|$LAMINA_CASSANDRA_PORT|; s|@STORAGE_PORT@|$storage_port|; s|@DATA@|$dir/data|" \
        "$here/cassandra.yaml" >"$dir/conf/cassandra.yaml"
    cp "$here/cassandra-rackdc.properties" "$here/logback.xml" "$dir/conf/"
}

# run_cassandra NAME HEAP MORE-OPTIONS-OF-JAVA...
run_cassandra() {
    local name=$1 dir=$run_dir/$1 heap=$2 jars
    shift 2
    jars=$(jars_of cassandra "$CASSANDRA_VERSION")
    launch "$name" "@$here/cassandra-jvm17.options" "-Xms$heap" "-Xmx$heap" -XX:+UseG1GC -Djava.net.preferIPv4Stack=true \
        -Dcassandra.config="file://$dir/conf/cassandra.yaml" -Dcassandra.storagedir="$dir/data" \
        -Dlogback.configurationFile="$dir/conf/logback.xml" -Dcassandra-foreground=yes "$@" \
        -cp "$dir/conf:$jars/*" org.apache.cassandra.service.CassandraDaemon
}

# await NAME [HOST]: until a backend that was launched answers.
await() {
    local name=$1 host=${2:-127.0.0.1} begun=$SECONDS told=$SECONDS
    until answers "$name" "$host"; do
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
    good "$name: up on $host:$(port_of "$name")"
}
