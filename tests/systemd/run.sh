#!/usr/bin/env bash
# Tests orderd's unit with real versions of systemd: boots Debian in containers, with orderd installed by `make install`, and
# runs inside.sh there. The broker is a private node on 127.0.0.1 of this machine.
#
# debootstrap makes a root file system for each Debian suite once, under target/systemd/; containers boot a copy of it. Both
# require root.
set -euo pipefail

if (($# < 2)); then
    echo "usage: run.sh PROGRAM SUITE...    such as: run.sh target/debug/orderd bookworm trixie" >&2
    exit 64
fi
program=$(realpath "$1")
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
trees=$root/target/systemd
mkdir -p "$trees"
# Time limit for a container, in seconds.
deadline=${SYSTEMD_TEST_DEADLINE:-420}
as_root() { if ((EUID == 0)); then "$@"; else sudo "$@"; fi; }

exec 8>"$trees/lock"
flock 8

missing=()
command -v debootstrap >/dev/null || missing+=(debootstrap)
command -v systemd-nspawn >/dev/null || missing+=(systemd-container)
if ((${#missing[@]})); then
    as_root apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

# Makes the root file system of a suite, unless it exists.
make_tree() {
    local suite=$1 tree=$trees/$1
    [[ -e $tree/.complete ]] && return
    echo "== making a root file system of Debian $suite: $tree"
    as_root rm -rf "$tree"
    as_root debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,ca-certificates,procps \
        "$suite" "$tree" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$trees/$suite.debootstrap.log"
    as_root touch "$tree/.complete"
}

# Creates a virtual host and a user on the broker. The password of the user is the credential that the unit loads.
prepare_broker() {
    local suite=$1
    tests/support/node.sh ctl systemd-test delete_vhost "systemd-$suite" >/dev/null 2>&1 || true
    tests/support/node.sh ctl systemd-test add_vhost "systemd-$suite" >/dev/null
    tests/support/node.sh ctl systemd-test delete_user "orderd-$suite" >/dev/null 2>&1 || true
    tests/support/node.sh ctl systemd-test add_user "orderd-$suite" "$password" >/dev/null
    tests/support/node.sh ctl systemd-test set_user_tags "orderd-$suite" monitoring >/dev/null
    tests/support/node.sh ctl systemd-test set_permissions -p "systemd-$suite" "orderd-$suite" '.*' '.*' '.*' >/dev/null
}

# Prepares a container's files: a copy of the suite's root file system, the installed orderd, its configuration and secrets.
prepare_container() {
    local suite=$1 container=$2 version
    as_root rm -rf "$container"
    as_root cp -a --reflink=auto "$trees/$suite" "$container"
    version=$(basename "$container"/usr/lib/*/systemd/libsystemd-shared-*.so .so)
    version=${version#libsystemd-shared-}
    as_root make --no-print-directory install DESTDIR="$container" BINARY="$program" SYSTEMD="${version%%[.-]*}" >"$trees/$suite.install.log"
    as_root sed -i -e "s|^addresses = .*|addresses = [\"127.0.0.1:$AMQP_PORT\"]|" \
        -e "s|^virtual_host = .*|virtual_host = \"systemd-$suite\"|" \
        -e "s|^username = .*|username = \"orderd-$suite\"|" \
        -e "s|^password = .*|password_file = \"/run/credentials/orderd.service/broker\"|" \
        -e "s|^url = .*|url = \"http://127.0.0.1:$MANAGEMENT_PORT\"|" \
        -e "s|^#\(\[\[admin.users\]\]\)|\1|" -e "s|^#\(name = \"ada\"\)|\1|" -e "s|^#\(role = \)|\1|" \
        -e "s|^#token_file = .*|token_file = \"/run/credentials/orderd.service/admin\"|" \
        -e "s|^listen = .*|listen = \"127.0.0.1:$ADMIN_PORT\"|" "$container/etc/orderd/orderd.toml"
    as_root install -d -m 700 "$container/etc/credstore"
    printf '%s\n' "$password" | as_root install -m 600 /dev/stdin "$container/etc/credstore/orderd.broker"
    printf '%s\n' "$token" | as_root install -m 600 /dev/stdin "$container/etc/credstore/orderd.admin"
    as_root install -m 755 "$here/inside.sh" "$container/opt/inside.sh"
    as_root install -m 644 "$here/inside.service" "$container/etc/systemd/system/inside.service"
    as_root ln -s ../inside.service "$container/etc/systemd/system/multi-user.target.wants/inside.service"
    printf 'ADMIN_PORT=%s\n' "$ADMIN_PORT" | as_root install -m 644 /dev/stdin "$container/opt/environment"
}

# Boots a container and waits until inside.sh has stopped it.
boot() {
    local suite=$1 container=$2 status=0
    # Newer versions of systemd require the unified cgroup hierarchy, whatever this machine uses.
    as_root env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout --kill-after=20 "$deadline" \
        systemd-nspawn --quiet --directory "$container" --machine "orderd-$suite" --register=no --keep-unit --boot \
        --console=pipe </dev/null >"$trees/$suite.console.log" 2>&1 || status=$?
    cat "$container/opt/results" 2>/dev/null || true
    if [[ $(cat "$container/opt/status" 2>/dev/null) != 0 ]]; then
        echo "== FAILED under Debian $suite (exit status $status of the container); end of its console log:" >&2
        tail -n 20 "$trees/$suite.console.log" >&2
        return 1
    fi
}

tests/support/node.sh start systemd-test >"$trees/node"
AMQP_PORT=$(sed -n 's/^AMQP_PORT=//p' "$trees/node")
MANAGEMENT_PORT=$(sed -n 's/^MANAGEMENT_PORT=//p' "$trees/node")
ADMIN_PORT=$((AMQP_PORT + 3000))
trap 'tests/support/node.sh wipe systemd-test' EXIT
password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')

failed=0
for suite in "$@"; do
    make_tree "$suite"
    prepare_broker "$suite"
    prepare_container "$suite" "$trees/container-$suite"
    echo "== orderd under the systemd of Debian $suite"
    boot "$suite" "$trees/container-$suite" || failed=1
    if ((!failed)); then as_root rm -rf "$trees/container-$suite"; fi
done
exit "$failed"
