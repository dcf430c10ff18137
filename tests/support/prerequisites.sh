#!/usr/bin/env bash
# Checks for the programs that a build needs, and says how to install those that are missing.
set -euo pipefail

missing=0
need() {
    local program=$1 why=$2 how=$3
    if ! command -v "$program" >/dev/null; then
        printf 'missing: %s (%s); %s\n' "$program" "$why" "$how" >&2
        missing=1
    fi
}
need cargo "builds orderd" "install Rust from your distribution or with rustup"
need cc "links Rust programs and compiles the bundled SQLite" "on Debian: apt-get install gcc libc6-dev"
need flock "locks the private broker nodes" "on Debian: apt-get install util-linux"
need setsid "starts the private broker nodes" "on Debian: apt-get install util-linux"
# Optional, for tests that only root can run: ip (on Debian: apt-get install iproute2). Without it, make test leaves them out.
exit "$missing"
