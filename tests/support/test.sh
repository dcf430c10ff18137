#!/usr/bin/env bash
# All that CI checks, in the order of what fails fastest. The tests start private broker nodes of their own;
# whatever they leave running is stopped at the end, also after a failure or Ctrl-C.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
node=tests/support/node.sh

step() { printf '\n== %s\n' "$*"; }

# Nodes that ran before, such as `make up`'s, are not the tests' and stay.
running() { "$node" list | sed -n 's/ running,.*//p' | sort; }
before=$(running)
finish() {
    local status=$? name
    trap - EXIT
    for name in $(comm -13 <(printf '%s\n' "$before") <(running)); do
        # The data of a node is worth keeping only where a failure is to be looked into.
        if ((status == 0)); then "$node" wipe "$name"; else "$node" stop "$name"; fi
    done
    if ((status != 0)); then printf '\ntests failed; logs of the broker nodes are in target/broker/*/log\n' >&2; fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

tests/support/prerequisites.sh

step "formatting"
cargo fmt --check

step "clippy"
cargo clippy --all-targets --locked -- -D warnings

# Takes minutes to install, so that it is run where it is; its advisories need a network, the rest does not.
if cargo deny --version >/dev/null 2>&1; then
    step "licences, duplicates and sources"
    cargo deny --config .cargo/deny.toml --offline check licenses bans sources
fi

# Without a broker the tests fail, so it had better be known before they are built.
step "a private broker node"
"$node" start test

step "tests"
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --no-fail-fast
else
    cargo test --locked --no-fail-fast --lib --bins --tests
fi

step "documentation tests"
cargo test --locked --doc
