#!/usr/bin/env bash
# Installs what the examples in Python, Node.js and shell need to run in the tests, in the versions that examples/ names, under
# target/examples/: a virtual environment with pika, and a copy of examples/node with amqplib. Programs that are missing are
# installed with apt-get. It needs a network only for what is not there yet.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=$root/target/examples

die() {
    printf 'examples.sh: %s\n' "$*" >&2
    exit 1
}

mkdir -p "$target"
exec 9>"$target/lock"
flock -w 900 9 || die "another caller has held $target/lock for 15 minutes"

packages=()
# Needs program $1, of Debian's packages that follow.
need() {
    command -v "$1" >/dev/null || packages+=("${@:2}")
}
need python3 python3 python3-venv
need node nodejs
need npm npm
need jq jq
# Debian's python3 comes without this module.
if command -v python3 >/dev/null && ! python3 -c 'import ensurepip' 2>/dev/null; then packages+=(python3-venv); fi
if ((${#packages[@]} > 0)); then
    how="the tests of examples/ need ${packages[*]}; install them, for example as root: apt-get install ${packages[*]}"
    command -v apt-get >/dev/null || die "$how"
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "$how"
        as_root=(sudo)
    fi
    printf 'examples.sh: installing %s with apt-get\n' "${packages[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    options=(-o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -qq)
    {
        "${as_root[@]}" apt-get "${options[@]}" update &&
            "${as_root[@]}" apt-get "${options[@]}" install -y --no-install-recommends "${packages[@]}"
    } </dev/null >&2 || die "apt-get failed, see its output above; $how"
fi
node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 18 ? 1 : 0)' ||
    die "node is $(node --version); the tests of examples/ need Node.js 18 or newer"

# Runs the installation "$@" unless it was completed with the same file $1; $2 says what it is.
once() {
    local file=$1 what=$2 stamp log
    stamp=$target/$(basename "$file").installed
    log=$target/$(basename "$file").log
    cmp -s "$file" "$stamp" && return 0
    rm -f "$stamp"
    "${@:3}" >"$log" 2>&1 </dev/null || {
        tail -n 20 "$log" >&2
        die "cannot install $what, see above; the tests of examples/ need a network, or a mirror that the client's own configuration names, until that is done once"
    }
    cp "$file" "$stamp"
}

install_python() {
    rm -rf "$target/python"
    python3 -m venv "$target/python" &&
        "$target/python/bin/pip" install --disable-pip-version-check --only-binary :all: -r "$root/examples/python/requirements.txt"
}
once "$root/examples/python/requirements.txt" "pika from PyPI" install_python

mkdir -p "$target/node"
cp "$root"/examples/node/*.js* "$target/node/"
install_node() { npm ci --prefix "$target/node" --no-audit --no-fund --ignore-scripts; }
once "$root/examples/node/package-lock.json" "amqplib from npm" install_node
