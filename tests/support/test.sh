#!/usr/bin/env bash
# Runs everything that CI runs, fastest first. The tests start private broker nodes; those that are still running at the end
# are stopped, also after a failure or Ctrl-C.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
node=tests/support/node.sh
# The tests do not depend on the caller's settings.
for variable in "${!ORDERD_@}"; do [[ $variable == ORDERD_TEST_* ]] || unset "$variable"; done

step() { tests/support/step.sh "$@"; }

# Nodes that are running already, such as that of `make up`, are left running.
running() { "$node" list | sed -n 's/ running,.*//p' | sort; }
before=$(running)
finish() {
    local status=$? name
    trap - EXIT
    for name in $(comm -13 <(printf '%s\n' "$before") <(running)); do
        # Data is kept after a failure, for diagnosis.
        if ((status == 0)); then "$node" wipe "$name"; else "$node" stop "$name"; fi
    done
    if ((status != 0)); then printf '\ntests failed; logs of the broker nodes are in target/broker/*/log\n' >&2; fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

tests/support/prerequisites.sh

step "formatting" cargo fmt --all --check

step "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings

# cargo-deny takes minutes to install, so it is run only where it is installed. Advisories are left out: they need a network.
if cargo deny --version >/dev/null 2>&1; then
    step "licences, duplicates and sources" cargo deny --config .cargo/deny.toml --offline check licenses bans sources
fi

# The tests fail without a broker, so find out before building them.
step "find or install RabbitMQ, start a private node" "$node" start shared

step "install what the examples in Python, Node.js and shell need" tests/support/examples.sh

step "install the SMTP server of the tests" tests/support/smtp.sh

if cargo nextest --version >/dev/null 2>&1; then
    step "build tests" cargo nextest run --locked --no-run
    step "unit, offline and broker tests" cargo nextest run --locked --no-fail-fast
    tests_as_root=(cargo nextest run --locked --no-fail-fast --run-ignored only -E 'test(/as_root::/)')
else
    step "build tests" cargo test --locked --no-run --lib --bins --tests
    step "unit, offline and broker tests" cargo test --locked --no-fail-fast --lib --bins --tests
    tests_as_root=(cargo test --locked --no-fail-fast --lib --test broker as_root:: -- --ignored)
fi

# They mount file systems and cut networks, which root may not do in an ordinary container. The probe leaves nothing behind.
can_mount_and_cut() {
    unshare --mount --net sh -c 'mount -t tmpfs tmpfs target && ip link add probe0 type veth peer name probe1' 2>/dev/null
}
if ((EUID == 0)) && can_mount_and_cut; then
    step "tests that need root" "${tests_as_root[@]}"
else
    skipped="the tests that need root were NOT RUN: run make test as root, with CAP_SYS_ADMIN, CAP_NET_ADMIN and iproute2 (ip)"
    echo "$skipped"
fi

step "documentation tests" cargo test --locked --doc --package orderd
printf '%s' "${skipped:+$skipped$'\n'}"
