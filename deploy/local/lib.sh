# shellcheck shell=bash
# What up.sh, down.sh and status.sh share: places, ports, messages, probes. Sourced, never run.

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
    case $1 in kafka) echo "$LAMINA_KAFKA_PORT" ;; cassandra) echo "$LAMINA_CASSANDRA_PORT" ;; esac
}

port_open() { timeout 2 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1" 2>/dev/null; }

# exchange PORT REQUEST BYTES: sends the request (printf escapes), prints the first bytes of the answer in hex.
exchange() {
    timeout 3 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$0"; printf "$1" >&3; head -c "$2" <&3' "$1" "$2" "$3" 2>/dev/null |
        od -An -v -tx1 | tr -d ' \n'
}

# Whether the service itself answers on its port, not just anything.
answers() {
    local reply
    case $1 in
        # ApiVersions v0, correlation id 7, no client id: the answer repeats the correlation id and has no error.
        kafka)
            reply=$(exchange "$LAMINA_KAFKA_PORT" '\0\0\0\012\0\022\0\0\0\0\0\07\377\377' 10)
            [ "${reply:8}" = 000000070000 ]
            ;;
        # OPTIONS in protocol version 4: the answer is SUPPORTED (opcode 6).
        cassandra)
            reply=$(exchange "$LAMINA_CASSANDRA_PORT" '\004\0\0\0\005\0\0\0\0' 5)
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
