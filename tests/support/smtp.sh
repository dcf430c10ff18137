#!/usr/bin/env bash
# Installs aiosmtpd, the SMTP server of the tests (Debian's python3-aiosmtpd), if it is missing.
set -euo pipefail

die() {
    printf 'smtp.sh: %s\n' "$*" >&2
    exit 1
}

if ! /usr/bin/python3 -c 'import aiosmtpd' 2>/dev/null; then
    how="the tests of notifications need python3-aiosmtpd; install it, for example as root: apt-get install python3-aiosmtpd"
    command -v apt-get >/dev/null || die "$how"
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "$how"
        as_root=(sudo)
    fi
    printf 'smtp.sh: installing python3-aiosmtpd with apt-get\n' >&2
    export DEBIAN_FRONTEND=noninteractive
    options=(-o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -qq)
    {
        "${as_root[@]}" apt-get update "${options[@]}"
        "${as_root[@]}" apt-get install --yes --no-install-recommends "${options[@]}" python3-aiosmtpd
    } >&2 || die "$how"
fi
