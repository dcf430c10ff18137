# shellcheck shell=bash
# Finds RabbitMQ's programs, and installs them if they are missing. To be sourced, not executed.
#
# It never starts, stops or configures the system's own RabbitMQ service.

say() { printf 'node.sh: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# Prints the directory of the rabbitmq-server program. Debian's wrapper in /usr/sbin would not do, since it requires the
# user rabbitmq. RABBITMQ_BIN overrides the search. With another root directory, the path is relative to that root.
rabbitmq_bin() {
    local dir
    if [[ -n ${other_root:-} ]]; then
        dir=/usr/lib/rabbitmq/bin
        [[ -x $other_root$dir/rabbitmq-server ]] || die "there is no $dir/rabbitmq-server under $other_root"
        printf '%s\n' "$dir"
        return 0
    fi
    for dir in "${RABBITMQ_BIN:-}" /usr/lib/rabbitmq/bin /opt/rabbitmq/sbin /usr/local/lib/rabbitmq/sbin; do
        if [[ -n $dir && -x $dir/rabbitmq-server && -x $dir/rabbitmqctl ]]; then
            printf '%s\n' "$dir"
            return 0
        fi
    done
    return 1
}

# Installs RabbitMQ if it is missing. $1 is a lock file, so that two callers do not both install it.
ensure_rabbitmq() {
    local lock=$1
    rabbitmq_bin >/dev/null && return 0
    exec 8>"$lock"
    flock -w 900 8 || die "another installation of RabbitMQ has held $lock for 15 minutes"
    rabbitmq_bin >/dev/null || install_rabbitmq
    exec 8>&-
    rabbitmq_bin >/dev/null ||
        die "RabbitMQ was installed, but rabbitmq-server was not found in the usual directories; set RABBITMQ_BIN to its directory"
}

# Installs with apt-get, as root or through sudo. While it runs, /usr/sbin/policy-rc.d forbids packages to start services:
# otherwise Debian would start RabbitMQ on the standard ports.
install_rabbitmq() {
    command -v apt-get >/dev/null ||
        die "RabbitMQ is not installed, and there is no apt-get to install it with; install RabbitMQ 3.10 or newer, or set RABBITMQ_BIN to the directory of rabbitmq-server"
    local as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            die "RabbitMQ is not installed, and neither root nor sudo is available; run as root: apt-get install rabbitmq-server"
        as_root=(sudo)
        say "RabbitMQ is missing: installing the package rabbitmq-server with sudo apt-get (its service is not started)"
    else
        say "RabbitMQ is missing: installing the package rabbitmq-server with apt-get (its service is not started)"
    fi
    "${as_root[@]}" bash -s >&2 <<'ROOT' || die "apt-get could not install rabbitmq-server; see its output above"
set -euo pipefail
guard=/usr/sbin/policy-rc.d
saved=$guard.orderd-saved
restore() {
    rm -f "$guard"
    if [[ -e $saved ]]; then mv "$saved" "$guard"; fi
}
if [[ -e $guard && ! -e $saved ]]; then mv "$guard" "$saved"; fi
trap restore EXIT
trap 'exit 130' INT TERM HUP
printf '#!/bin/sh\nexit 101\n' >"$guard"
chmod 755 "$guard"
export DEBIAN_FRONTEND=noninteractive
options=(-o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -qq)
apt-get "${options[@]}" update </dev/null
apt-get "${options[@]}" install -y --no-install-recommends rabbitmq-server </dev/null
# The package also enables its service for the next boot; only the programs are needed here.
if command -v systemctl >/dev/null; then systemctl disable rabbitmq-server.service 2>/dev/null || true; fi
ROOT
}
