# shellcheck shell=bash
# The Docker engine to build and run images with: the running one, or a private one if none is running. To be sourced.
#
# The private engine keeps everything under target/image/, has no network but loopback, and is stopped by the script that
# has started it.

engine_dir=$root/target/image
engine_pid=''
# Options with which a build can reach the package registry.
build_network=()

say() { printf 'image: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

ensure_engine() {
    if docker info >/dev/null 2>&1; then return 0; fi
    ((EUID == 0)) || die "no Docker engine is running, and only root can start one; start Docker, or run this as root"
    if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
        say "no Docker engine is running: installing the package docker.io (its service is not started)"
        install_packages docker.io
    fi
    start_engine
}

# Installs packages with apt-get; a policy-rc.d forbids them to start services.
install_packages() {
    command -v apt-get >/dev/null || die "there is no apt-get; install these and try again: $*"
    local guard=/usr/sbin/policy-rc.d made=''
    if [[ ! -e $guard ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$guard"
        chmod 755 "$guard"
        made=yes
    fi
    local outcome=0
    {
        apt-get -qq -o DPkg::Lock::Timeout=600 update &&
            DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@"
    } </dev/null >&2 || outcome=$?
    if [[ -n $made ]]; then rm -f "$guard"; fi
    ((outcome == 0)) || die "apt-get could not install $*"
}

start_engine() {
    mkdir -p "$engine_dir"
    export DOCKER_HOST=unix://$engine_dir/docker.sock
    build_network=(--network host)
    # Without a bridge and without iptables rules, it does not change the network of this machine.
    dockerd --data-root "$engine_dir/docker" --exec-root "$engine_dir/run" --pidfile "$engine_dir/dockerd.pid" \
        --host "$DOCKER_HOST" --bridge=none --iptables=false --ip6tables=false </dev/null >"$engine_dir/dockerd.log" 2>&1 &
    engine_pid=$!
    local end=$((SECONDS + 60))
    until docker info >/dev/null 2>&1; do
        kill -0 "$engine_pid" 2>/dev/null || die "dockerd has exited: $(tail -n 3 "$engine_dir/dockerd.log")"
        ((SECONDS < end)) || die "dockerd does not answer after 60 s; its log is $engine_dir/dockerd.log"
        sleep 0.2
    done
    say "started a private Docker engine, pid $engine_pid"
}

# Stops the private engine, if one was started.
stop_engine() {
    if [[ -z $engine_pid ]]; then return 0; fi
    kill -TERM "$engine_pid" 2>/dev/null || true
    wait "$engine_pid" 2>/dev/null || true
    engine_pid=''
}
