#!/usr/bin/env bash
# Starts and stops private RabbitMQ nodes for the demo, the tests and the benchmark.
#
# Each node has its own name, its data and logs under target/broker/NAME/, its own ports on 127.0.0.1 and its own Erlang
# port mapper (epmd), so that a RabbitMQ that is already running is neither used nor disturbed. The script stops only
# processes that it has started, each by its pid.
#
# To test with another version, set ORDERD_TEST_BROKER_ROOT to the root directory of another Debian, such as one made by
# debootstrap: then its RabbitMQ is used instead of this system's. This requires root. The nodes are under
# target/broker-DIRECTORY/.
set -euo pipefail

usage() {
    cat >&2 <<'EOF_USAGE'
usage: node.sh install           install RabbitMQ if it is missing
       node.sh start NAME        start a node and wait until it accepts connections; prints its ports
       node.sh stop NAME         stop a node and keep its data
       node.sh kill NAME         kill its VM with SIGKILL
       node.sh wipe NAME         stop a node and delete its data
       node.sh ctl NAME ARGS...  run rabbitmqctl on a node
       node.sh list              list all nodes and whether they are running
       node.sh stop-all          stop all nodes

With NODE_TLS=DIRECTORY at its first start, a node also listens for TLS, on AMQPS_PORT and MANAGEMENT_TLS_PORT, and offers
the mechanism EXTERNAL. DIRECTORY/rabbitmq.conf, which is read at every start, names the certificates.

With NODE_CLUSTER=NAME at its first start, a node is in the cluster of node NAME, which is started first, with its own name in
NODE_CLUSTER. The nodes share NAME's port mapper and Erlang cookie; a minority of them pauses (pause_minority).
EOF_USAGE
    exit 64
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
other_root=${ORDERD_TEST_BROKER_ROOT:-}
other_root=${other_root%/}
base=$root/target/broker${other_root:+-$(basename "$other_root")}
# shellcheck source=tests/support/rabbitmq.sh
source "$here/rabbitmq.sh"

# Time limits for starting and stopping a node, in seconds.
start_deadline=${NODE_START_DEADLINE:-120}
stop_deadline=60
# The range of ports: below those that the kernel assigns to clients, above RabbitMQ's standard ports.
first_port=28100
port_blocks=760

# Sets the variables that all commands use for node NAME.
select_node() {
    name=${1:-}
    [[ $name =~ ^[a-z0-9][a-z0-9_-]{0,40}$ ]] || die "invalid node name \"$name\": must consist of a-z, 0-9, - and _"
    node=orderd_$name@localhost
    dir=$base/$name
    AMQP_PORT='' MANAGEMENT_PORT='' DIST_PORT='' EPMD_PORT='' PID='' EPMD_PID='' TLS_DIRECTORY=${NODE_TLS:-} CLUSTER=${NODE_CLUSTER:-}
    local key value
    if [[ -r $dir/env ]]; then
        while IFS='=' read -r key value; do
            case $key in
            AMQP_PORT | MANAGEMENT_PORT | DIST_PORT | EPMD_PORT | PID | EPMD_PID | TLS_DIRECTORY | CLUSTER) printf -v "$key" '%s' "$value" ;;
            esac
        done <"$dir/env"
    fi
    derive_ports
}

# The TLS ports follow the other four.
derive_ports() {
    AMQPS_PORT=$((AMQP_PORT + 4)) MANAGEMENT_TLS_PORT=$((AMQP_PORT + 5))
}

# Whether the node has joined the cluster of another one.
is_member() { [[ -n $CLUSTER && $CLUSTER != "$name" ]]; }

# Prints a variable of the first node of this node's cluster.
first_node() { sed -n "s/^$1=//p" "$base/$CLUSTER/env"; }

# Allows one caller at a time per node. The lock file is outside of the node's directory, which `wipe` deletes.
lock_node() {
    mkdir -p "$base"
    exec 9>"$base/$name.lock"
    flock -w $((start_deadline + stop_deadline + 30)) 9 || die "another caller has held node $name for too long ($base/$name.lock)"
}

write_env() {
    cat >"$dir/env.new" <<EOF_ENV
AMQP_PORT=$AMQP_PORT
MANAGEMENT_PORT=$MANAGEMENT_PORT
AMQPS_PORT=$AMQPS_PORT
MANAGEMENT_TLS_PORT=$MANAGEMENT_TLS_PORT
TLS_DIRECTORY=$TLS_DIRECTORY
CLUSTER=$CLUSTER
PID=$PID
NODE=$node
DIST_PORT=$DIST_PORT
EPMD_PORT=$EPMD_PORT
EPMD_PID=$EPMD_PID
EOF_ENV
    mv "$dir/env.new" "$dir/env"
}

# Whether process $1 is alive. A zombie, which has exited but was not waited for, counts as dead.
is_alive() {
    [[ -n $1 ]] && kill -0 "$1" 2>/dev/null && ! grep -qs '^State:[[:space:]]*Z' "/proc/$1/status"
}

# Whether process $1 is alive and was started by this script for this node, which shows in its environment. So a pid that
# the kernel has reused for another process is never mistaken for a node's.
is_ours() {
    local try environment
    for try in 1 2 3 4; do
        is_alive "$1" || return 1
        environment=$(tr '\0' '\n' 2>/dev/null <"/proc/$1/environ") || return 1
        # During an exec, the environment is empty for a moment.
        if [[ -n $environment ]]; then
            [[ $'\n'$environment$'\n' == *$'\n'"ORDERD_NODE_DIR=$dir"$'\n'* ]]
            return
        fi
        sleep 0.0"$try"
    done
    return 1
}

# Waits until a forked child has executed its program.
await_exec() {
    while is_alive "$1" && ! is_ours "$1"; do sleep 0.01; done
}

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Chooses six consecutive unused ports, at random, because another checkout may be choosing at the same time. If both
# choose the same ports, the node fails to start and `start` chooses again.
choose_ports() {
    local try port
    for try in {1..200}; do
        AMQP_PORT=$((first_port + 6 * ((RANDOM * 32768 + RANDOM) % port_blocks)))
        MANAGEMENT_PORT=$((AMQP_PORT + 1)) DIST_PORT=$((AMQP_PORT + 2)) EPMD_PORT=$((AMQP_PORT + 3))
        derive_ports
        grep -qsx "AMQP_PORT=$AMQP_PORT" "$base"/*/env && continue
        for port in "$AMQP_PORT" "$MANAGEMENT_PORT" "$DIST_PORT" "$EPMD_PORT" "$AMQPS_PORT" "$MANAGEMENT_TLS_PORT"; do
            port_is_taken "$port" && continue 2
        done
        if is_member; then EPMD_PORT=$(first_node EPMD_PORT); fi
        return 0
    done
    die "found no six free ports on 127.0.0.1 from $first_port in $try tries"
}

# Waits until this node's ports are free. The sockets of a killed VM are closed with a short delay.
await_free_ports() {
    local end=$((SECONDS + 15))
    while port_is_taken "$AMQP_PORT" || port_is_taken "$MANAGEMENT_PORT" || port_is_taken "$DIST_PORT"; do
        if ((SECONDS >= end)); then return 1; fi
        sleep 0.1
    done
}

write_node_files() {
    mkdir -p "$dir/data" "$dir/log" "$dir/conf.d" "$dir/schema"
    # The node's own Erlang cookie, which Erlang reads from $HOME: this directory for all programs of the node.
    if is_member; then
        cp -f "$base/$CLUSTER/.erlang.cookie" "$dir/.erlang.cookie"
    elif [[ ! -s $dir/.erlang.cookie ]]; then
        (umask 077 && head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$dir/.erlang.cookie")
        chmod 400 "$dir/.erlang.cookie"
    fi
    : >"$dir/rabbitmq-env.conf"
    # Statistics add up only if this never runs: it deletes counts of channels that have ended before they are aggregated.
    printf '[{rabbit, [{core_metrics_gc_interval, 86400000}]}].\n' >"$dir/advanced.config"
    printf '[rabbitmq_management].\n' >"$dir/enabled_plugins"
    cat >"$dir/rabbitmq.conf" <<EOF_CONF
listeners.tcp.1 = 127.0.0.1:$AMQP_PORT
management.tcp.ip = 127.0.0.1
management.tcp.port = $MANAGEMENT_PORT
log.file = $dir/log/node.log
log.file.level = info
EOF_CONF
    if [[ -n $CLUSTER ]]; then
        cat >>"$dir/rabbitmq.conf" <<EOF_CLUSTER
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = orderd_$CLUSTER@localhost
cluster_partition_handling = pause_minority
EOF_CLUSTER
        if is_member; then printf 'cluster_formation.classic_config.nodes.2 = %s\n' "$node" >>"$dir/rabbitmq.conf"; fi
    fi
    if [[ -n $TLS_DIRECTORY ]]; then
        printf '[rabbitmq_management,rabbitmq_auth_mechanism_ssl].\n' >"$dir/enabled_plugins"
        cat - "$TLS_DIRECTORY/rabbitmq.conf" >>"$dir/rabbitmq.conf" <<EOF_TLS
listeners.ssl.1 = 127.0.0.1:$AMQPS_PORT
management.ssl.ip = 127.0.0.1
management.ssl.port = $MANAGEMENT_TLS_PORT
EOF_TLS
    fi
}

# Executes its arguments in the other root directory. There, the node's directory and the one with its certificates are
# mounted under the same paths, in a private mount namespace that ends with the process.
in_root='
    set -e
    for directory in "$1" "$2"; do
        if [[ -z $directory ]]; then continue; fi
        mkdir -p "$0$directory"
        mount --bind "$directory" "$0$directory"
    done
    mount --bind /dev "$0/dev"
    mount -t proc proc "$0/proc"
    exec chroot "$0" "${@:3}"'

# Executes "$@" with the node's environment and without the caller's RabbitMQ and Erlang settings.
exec_in_node_env() {
    local loopback='-kernel inet_dist_use_interface {127,0,0,1}'
    if [[ -n $other_root ]]; then set -- unshare --mount bash -c "$in_root" "$other_root" "$dir" "$TLS_DIRECTORY" "$@"; fi
    exec env -i PATH="$PATH" LANG=C.UTF-8 HOME="$dir" ORDERD_NODE_DIR="$dir" \
        ERL_EPMD_PORT="$EPMD_PORT" ERL_EPMD_ADDRESS=127.0.0.1 ERL_CRASH_DUMP="$dir/log/erl_crash.dump" \
        RABBITMQ_NODENAME="$node" RABBITMQ_DIST_PORT="$DIST_PORT" RABBITMQ_NODE_PORT="$AMQP_PORT" RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \
        RABBITMQ_CONF_ENV_FILE="$dir/rabbitmq-env.conf" RABBITMQ_CONFIG_FILE="$dir/rabbitmq.conf" \
        RABBITMQ_CONFIG_FILES="$dir/conf.d" RABBITMQ_ADVANCED_CONFIG_FILE="$dir/advanced.config" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$dir/enabled_plugins" RABBITMQ_PID_FILE="$dir/node.pid" \
        RABBITMQ_MNESIA_BASE="$dir/data" RABBITMQ_LOG_BASE="$dir/log" RABBITMQ_SCHEMA_DIR="$dir/schema" \
        RABBITMQ_GENERATED_CONFIG_DIR="$dir/schema" RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="$loopback" \
        RABBITMQ_CTL_ERL_ARGS="$loopback" RABBITMQ_CTL_DIST_PORT_MIN=0 RABBITMQ_CTL_DIST_PORT_MAX=0 \
        RUNNING_UNDER_SYSTEMD=true "$@"
}

epmd_program() {
    local program here
    here=$(command -v epmd || true)
    for program in ${here:+"$other_root$here"} "$other_root"/usr/lib/erlang/erts-*/bin/epmd "$other_root"/usr/local/lib/erlang/erts-*/bin/epmd; do
        if [[ -x $program ]]; then
            printf '%s\n' "${program#"$other_root"}"
            return 0
        fi
    done
    die "found no epmd, which is a part of Erlang"
}

# epmd survives a kill of the VM, and is stopped together with the node.
start_epmd() {
    if is_member; then
        port_is_taken "$EPMD_PORT" || die "start node $CLUSTER, the first one of the cluster of $name, first"
        return 0
    fi
    is_ours "$EPMD_PID" && return 0
    exec_in_node_env setsid "$(epmd_program)" -port "$EPMD_PORT" -address 127.0.0.1 </dev/null >>"$dir/log/epmd.log" 2>&1 9>&- &
    EPMD_PID=$!
    await_exec "$EPMD_PID"
    write_env
}

# RUNNING_UNDER_SYSTEMD makes rabbitmq-server exec the VM instead of remaining its parent.
start_vm() {
    rm -f "$dir/node.pid"
    exec_in_node_env setsid "$(rabbitmq_bin)/rabbitmq-server" </dev/null >>"$dir/log/console.log" 2>&1 9>&- &
    PID=$!
    await_exec "$PID"
    write_env
}

# RabbitMQ opens its listeners at the end of its start. 1 is the frame type of the connection.start that it then sends.
answers_amqp() {
    local octet
    octet=$(
        exec 2>/dev/null
        exec 3<>"/dev/tcp/127.0.0.1/$AMQP_PORT" || exit 1
        printf 'AMQP\x00\x00\x09\x01' >&3
        timeout 5 head -c 1 <&3 | od -An -tu1
    ) || true
    [[ ${octet//[[:space:]]/} == 1 ]]
}

# Returns 0 when the node accepts connections, 1 when its VM has exited, 2 at the deadline.
await_node() {
    local end=$((SECONDS + start_deadline))
    while ((SECONDS < end)); do
        # The pid has just been assigned, so it cannot belong to another process.
        is_alive "$PID" || return 1
        if answers_amqp && port_is_taken "$MANAGEMENT_PORT"; then return 0; fi
        sleep 0.2
    done
    return 2
}

show_log_tail() {
    say "end of its log:"
    tail -n 25 "$dir/log/console.log" >&2 || true
    if [[ -s $dir/log/node.log ]]; then tail -n 25 "$dir/log/node.log" >&2; fi
}

# Stops process $1 with TERM and, at the deadline, with KILL.
stop_process() {
    local pid=$1 end=$((SECONDS + stop_deadline))
    is_ours "$pid" || return 0
    kill -TERM "$pid" 2>/dev/null || return 0
    while is_ours "$pid"; do
        if ((SECONDS >= end)); then
            say "process $pid of node $name has not exited in $stop_deadline s: killing it"
            kill -KILL "$pid" 2>/dev/null || true
            end=$((SECONDS + stop_deadline))
        fi
        sleep 0.1
    done
}

stop_node() {
    stop_process "$PID"
    PID=''
    if [[ -z $CLUSTER ]]; then
        stop_process "$EPMD_PID"
        EPMD_PID=''
    fi
    if [[ -d $dir ]]; then write_env; fi
    if [[ -n $CLUSTER ]]; then (stop_epmd_of_cluster "$CLUSTER"); fi
}

# Stops the port mapper of a cluster once none of its nodes is running. Selects other nodes: to be called in a subshell.
stop_epmd_of_cluster() {
    local first=$1 env_file
    for env_file in "$base"/*/env; do
        grep -qx "CLUSTER=$first" "$env_file" || continue
        select_node "$(basename "$(dirname "$env_file")")"
        if is_ours "$PID"; then return 0; fi
    done
    if [[ -r $base/$first/env ]]; then
        select_node "$first"
        stop_process "$EPMD_PID"
    fi
}

# Erlang resolves the node's host name, and a root directory made by debootstrap may lack the file for it.
write_hosts() {
    [[ -z $other_root || -s $other_root/etc/hosts ]] || printf '127.0.0.1 localhost\n::1 localhost\n' >"$other_root/etc/hosts"
}

start() {
    ensure_rabbitmq "$base/install.lock"
    write_hosts
    if is_ours "$PID"; then
        await_node && return 0
        say "node $name is running but does not answer: restarting it"
        stop_node
    fi
    local try outcome fixed=$AMQP_PORT
    for try in 1 2 3; do
        if [[ -z $AMQP_PORT ]]; then
            choose_ports
        elif ! await_free_ports; then
            die "another process listens on port $AMQP_PORT or $MANAGEMENT_PORT of node $name; to get new ports, run: node.sh wipe $name"
        fi
        write_node_files
        : >"$dir/log/console.log"
        start_epmd
        start_vm
        outcome=0
        await_node || outcome=$?
        if ((outcome == 0)); then return 0; fi
        # If another process has taken a port, choose again, unless clients know the port from an earlier start.
        if ((outcome == 1)) && [[ -z $fixed ]] && grep -qsE 'eaddrinuse|already in use' "$dir/log/console.log" "$dir/log/node.log"; then
            stop_node
            AMQP_PORT=''
            continue
        fi
        break
    done
    case $outcome in
    1) say "node $name exited while starting (try $try)" ;;
    *) say "node $name did not accept connections within $start_deadline s" ;;
    esac
    show_log_tail
    stop_node
    exit 1
}

case ${1:-} in
install)
    mkdir -p "$base"
    ensure_rabbitmq "$base/install.lock"
    say "RabbitMQ's programs are in $(rabbitmq_bin)"
    ;;
start)
    select_node "${2:-}"
    lock_node
    select_node "$name"
    start
    cat "$dir/env"
    ;;
stop)
    select_node "${2:-}"
    lock_node
    select_node "$name"
    stop_node
    ;;
kill)
    select_node "${2:-}"
    is_ours "$PID" || die "node $name is not running"
    kill -KILL "$PID"
    while is_ours "$PID"; do sleep 0.02; done
    ;;
wipe)
    select_node "${2:-}"
    lock_node
    select_node "$name"
    stop_node
    rm -rf "$dir"
    ;;
ctl)
    select_node "${2:-}"
    [[ -n $EPMD_PORT ]] || die "there is no node $name"
    shift 2
    exec_in_node_env "$(rabbitmq_bin)/rabbitmqctl" "$@"
    ;;
list | stop-all)
    shopt -s nullglob
    for env_file in "$base"/*/env; do
        select_node "$(basename "$(dirname "$env_file")")"
        if [[ $1 == stop-all ]]; then
            lock_node
            select_node "$name"
            stop_node
        elif is_ours "$PID"; then
            printf '%s running, pid %s, AMQP on 127.0.0.1:%s\n' "$name" "$PID" "$AMQP_PORT"
        else
            printf '%s stopped\n' "$name"
        fi
    done
    ;;
*) usage ;;
esac
