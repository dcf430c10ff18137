#!/usr/bin/env bash
# Builds the image orderd:VERSION with the running Docker engine, or with a private one if none is running.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=tests/image/engine.sh
source "$root/tests/image/engine.sh"
# shellcheck source=tests/image/bases.sh
source "$root/tests/image/bases.sh"
# shellcheck source=tests/image/make.sh
source "$root/tests/image/make.sh"

trap stop_engine EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
ensure_engine
make_image
docker image ls "$image"
