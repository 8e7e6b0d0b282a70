#!/usr/bin/env bash
# Shows rolegate keep one address alive while a Redis master dies; --help tells more.
set -euo pipefail

usage() {
    cat <<'END'
Usage: examples/quickstart.sh [--once | --install]

Builds rolegate, starts a Redis master, two replicas, three Sentinels and rolegate with the shipped
proxy.yaml, all on 127.0.0.1. Writes a key through rolegate, kills the master and shows how long
the key was out of reach. Then all runs on for you to play with, until Ctrl-C stops and removes it.

  --once       end after the demonstration, with exit code 0 only if all was as it should be
  --install    only install what is missing, as tests/run.sh does
  -h, --help   show this help

Needs bash 5 and Rust. On Debian and Ubuntu it installs Redis, and gcc if there is no C linker, with
apt-get where they are missing; it does not start the service that comes with Debian's Redis.
END
}

once=0 only_install=0
case "$#:${1-}" in
    0:) ;;
    1:--once) once=1 ;;
    1:--install) only_install=1 ;;
    1:-h | 1:--help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
esac

root=$(readlink -f -- "${BASH_SOURCE[0]}")
root=${root%/examples/*}
cd -- "$root"

# The first five stand in proxy.yaml.
nodes=(redis1 redis2 redis3)
sentinels=(sentinel1 sentinel2 sentinel3)
declare -A port=(
    [rolegate]=6379 [rolegate-status]=9101 [redis1]=7001 [redis2]=7002 [redis3]=7003
    [sentinel1]=27001 [sentinel2]=27002 [sentinel3]=27003
)
declare -A pids=()
dir=
policy=/usr/sbin/policy-rc.d
policy_is_ours=0

# die REASON [NAME...]: ends with the reason and the last log lines of the named processes.
die() {
    local name
    printf '\nquickstart: %s\n' "$1" >&2
    for name in "${@:2}"; do
        [[ -n $dir && -s $dir/$name.log ]] || continue
        printf -- '--- the end of the log of %s:\n' "$name" >&2
        tail -n 10 -- "$dir/$name.log" >&2
    done
    exit 1
}

as_root() { if ((EUID == 0)); then "$@"; else sudo "$@"; fi; }

# Stops the shell's own children only: its job table knows them, while a pid may be used again.
# shellcheck disable=SC2046 # one word for each pid
cleanup() {
    local status=$? deadline=$((SECONDS + 5))
    trap '' INT TERM HUP
    set +e
    if ((policy_is_ours)); then as_root rm -f "$policy"; fi
    {
        kill -TERM $(jobs -pr)
        while [[ -n $(jobs -pr) ]] && ((SECONDS < deadline)); do sleep 0.05; done
        kill -KILL $(jobs -pr)
        wait
    } 2>/dev/null
    if [[ -n $dir ]]; then
        rm -rf -- "$dir" && echo "Everything is stopped, and $dir is removed."
    fi
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

check_ports() {
    local name number owner status taken=''
    for name in rolegate rolegate-status "${nodes[@]}" "${sentinels[@]}"; do
        number=${port[$name]} owner='another process' status=0
        # 1: nobody answers. A listener that lets us wait for an answer has the port, too.
        timeout 2 bash -c ": </dev/tcp/127.0.0.1/$number" 2>/dev/null || status=$?
        ((status != 1)) || continue
        if [[ $(ss -Hltnp "sport = :$number" 2>/dev/null) =~ \"([^\"]+)\",pid=([0-9]+) ]]; then
            owner="${BASH_REMATCH[1]}, pid ${BASH_REMATCH[2]}"
        fi
        taken+=$'\n'"  $number, needed for $name, is taken by $owner"
    done
    [[ -z $taken ]] || die "ports of 127.0.0.1 are not free:$taken"
}

missing_packages() {
    local pair
    for pair in redis-server:redis-server redis-sentinel:redis-sentinel redis-cli:redis-tools cc:gcc cc:libc6-dev; do
        command -v "${pair%:*}" >/dev/null || echo "${pair#*:}"
    done
}

install_missing() {
    local packages
    mapfile -t packages < <(missing_packages)
    ((${#packages[@]})) || return 0
    command -v apt-get >/dev/null || die "there is no apt-get here, so please install what provides the commands
redis-server, redis-sentinel, redis-cli and cc; Debian's packages for what is missing: ${packages[*]}"
    ((EUID == 0)) || command -v sudo >/dev/null || die "run this as root: apt-get install ${packages[*]}"

    echo "Installing ${packages[*]} ..."
    # Debian starts a Redis on port 6379 as soon as it is installed, unless this file forbids it.
    if [[ ! -e $policy && ! -L $policy ]]; then
        policy_is_ours=1
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    as_root apt-get -q update || die "apt-get update failed; see above"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y "${packages[@]}" ||
        die "apt-get install failed; see above"
    if ((policy_is_ours)); then as_root rm -f "$policy" && policy_is_ours=0; fi
    mapfile -t packages < <(missing_packages)
    ((${#packages[@]} == 0)) || die "apt-get succeeded, yet commands are missing of: ${packages[*]}"
    if [[ -d /run/systemd/system ]]; then
        echo "Redis will start with the system from now on, unless you run: systemctl disable redis-server redis-sentinel"
    fi
}

build() {
    command -v cargo >/dev/null || PATH=${HOME:-/root}/.cargo/bin:$PATH
    command -v cargo >/dev/null || die "cargo is missing; install Rust: https://www.rust-lang.org/tools/install"
    echo "Building rolegate ..."
    cargo build --release --locked || die "the build failed; see above"
    rolegate=${CARGO_TARGET_DIR:-target}/release/rolegate
}

# start NAME COMMAND...: in the background, with a log of its own.
start() {
    "${@:2}" >"$dir/$1.log" 2>&1 &
    pids[$1]=$!
}

check_alive() {
    local name
    for name in "${!pids[@]}"; do
        kill -0 "${pids[$name]}" 2>/dev/null || die "$name has ended" "$name"
    done
}

# wait_for COMPLAINT NAME COMMAND...: until the command succeeds; else the log of NAME tells more.
wait_for() {
    local deadline=$((SECONDS + 30))
    until "${@:3}"; do
        check_alive
        ((SECONDS < deadline)) || die "after 30 s, $1" "$2"
        sleep 0.1
    done
}

# redis NAME [COMMAND...]: in the environment, the password is out of sight of ps.
redis() {
    REDISCLI_AUTH=$REDIS_PASSWORD timeout --foreground 6 redis-cli -p "${port[$1]}" "${@:2}" 2>/dev/null
}

replicas_online() { [[ $(redis redis1 info replication) == *slave0:*state=online*slave1:*state=online* ]]; }

sentinel_ready() {
    local REDIS_PASSWORD='' answer # Sentinel itself has none
    answer=$(redis "$1" sentinel master main | tr '\n' ' ')
    [[ $answer == *" num-slaves 2 "* && $answer == *" num-other-sentinels 2 "* ]] &&
        [[ $(redis "$1" sentinel ckquorum main) == OK* ]]
}

# http PATH: prints what rolegate answers, if that is a 200; without curl, which may be missing.
http() (
    exec 3<>"/dev/tcp/127.0.0.1/${port[rolegate-status]}"
    printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$1" >&3
    IFS= read -r -d '' -t 5 -u 3 answer || true # it ends where the connection does
    [[ $answer == "HTTP/1.1 200 "* ]] && printf '%s' "${answer#*$'\r\n\r\n'}"
) 2>/dev/null

# The name of the node that rolegate serves as the master.
master() {
    local pattern='rolegate_pool_master\{backend="([^"]+)",pool="main"\} 1'
    [[ $(http /metrics) =~ $pattern ]] && echo "${BASH_REMATCH[1]}"
}

start_all() {
    local name
    umask 077 # the configs hold the password
    dir=$(mktemp -d "${TMPDIR:-/tmp}/rolegate-quickstart.XXXXXX")
    REDIS_PASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    export REDIS_PASSWORD
    echo "$REDIS_PASSWORD" >"$dir/password"
    echo "Starting a Redis master, two replicas and three Sentinels ..."
    for name in "${nodes[@]}" "${sentinels[@]}"; do
        mkdir "$dir/$name"
        printf '%s\n' "port ${port[$name]}" "bind 127.0.0.1" "dir \"$dir/$name\"" >"$dir/$name.conf"
    done
    for name in "${nodes[@]}"; do
        printf '%s\n' "requirepass $REDIS_PASSWORD" "masterauth $REDIS_PASSWORD" 'save ""' \
            "repl-diskless-sync yes" "repl-diskless-sync-delay 0" >>"$dir/$name.conf"
        [[ $name == redis1 ]] || echo "replicaof 127.0.0.1 ${port[redis1]}" >>"$dir/$name.conf"
        start "$name" redis-server "$dir/$name.conf"
    done
    wait_for "the replicas are not in sync" redis2 replicas_online
    for name in "${sentinels[@]}"; do
        printf 'sentinel %s\n' "monitor main 127.0.0.1 ${port[redis1]} 2" "auth-pass main $REDIS_PASSWORD" \
            "down-after-milliseconds main 1000" "failover-timeout main 10000" >>"$dir/$name.conf"
        start "$name" redis-sentinel "$dir/$name.conf"
    done
    for name in "${sentinels[@]}"; do
        wait_for "$name does not know all nodes" "$name" sentinel_ready "$name"
    done
    start rolegate "$rolegate" -f proxy.yaml
    wait_for "rolegate is not ready" rolegate http /ready >/dev/null
}

demonstrate() {
    local key=rolegate:quickstart value="written before the failover" answer old new began micros
    old=$(master) || die "rolegate names no master" rolegate
    answer=$(printf '%s\n' "set $key '$value'" "wait 2 5000" | redis rolegate) || true
    [[ $answer == $'OK\n2' ]] || die "a write gave '$answer' rather than OK and 2 replicas" rolegate
    answer=$(redis rolegate get "$key") || true
    [[ $answer == "$value" ]] || die "a read gave '$answer' rather than '$value'" rolegate

    echo "Killing the master, $old ..."
    began=${EPOCHREALTIME//[.,]/}
    kill -KILL "${pids[$old]}"
    wait "${pids[$old]}" 2>/dev/null || true # until it is gone for sure
    unset "pids[$old]"
    until answer=$(redis rolegate get "$key") && [[ $answer == "$value" ]]; do
        check_alive
        # Should the Sentinels' vote fail, the next one comes after 20 s.
        ((${EPOCHREALTIME//[.,]/} < began + 60000000)) ||
            die "the key is not back after 60 s; the last answer was '$answer'" rolegate "${sentinels[@]}"
        sleep 0.01
    done
    micros=$((${EPOCHREALTIME//[.,]/} - began))

    new=$(master) || die "rolegate names no master after the failover" rolegate
    [[ $new != "$old" ]] || die "rolegate names $old as the master, which is dead" rolegate
    answer=$(redis rolegate set "$key:after" 1) || true
    [[ $answer == OK ]] || die "a write after the failover gave '$answer' rather than OK" rolegate
    http /ready >/dev/null || die "rolegate is not ready after the failover" rolegate
    cat <<END

  The address of all     127.0.0.1:${port[rolegate]}
  The master was         $old, 127.0.0.1:${port[$old]}, until kill -9
  The master is now      $new, 127.0.0.1:${port[$new]}, and it takes writes
  Out of reach for       $((micros / 1000)) ms, of which Sentinel waits 1000 ms to be sure
  The key is still       "$value"

END
}

((BASH_VERSINFO[0] >= 5)) || die "needs bash 5 or newer, found $BASH_VERSION"
((only_install)) && install_missing && exit 0
check_ports
install_missing
build
check_ports # again, because installing and building take a while
start_all
demonstrate
((once)) && exit 0

cat <<END
  Redis                  REDISCLI_AUTH=\$(cat $dir/password) redis-cli -p ${port[rolegate]}
  Status                 http://127.0.0.1:${port[rolegate-status]}/status, /metrics, /ready and /live
  Logs                   $dir/rolegate.log and its neighbours
  Stop                   Ctrl-C; nothing is left behind

END
trap 'exit 0' INT TERM
wait "${pids[rolegate]}" && status=0 || status=$?
die "rolegate has ended with exit code $status" rolegate
