#!/usr/bin/env bash
# Creates the passwords of compose.yaml, each as a file in secrets/ beside it; existing ones are kept.
#
# Compose mounts these files with their owner and mode, and each container runs as another user, so the files are readable
# for all; the closed directory keeps other users of this machine out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
mkdir -p secrets
chmod 700 secrets

make_secret() {
    if [[ -s secrets/$1 ]]; then return; fi
    head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"secrets/$1"
    chmod 444 "secrets/$1"
}
make_secret broker_password
make_secret prometheus_token
make_secret grafana_password
printf 'default_pass = %s\n' "$(cat secrets/broker_password)" >secrets/broker_user.conf.new
chmod 444 secrets/broker_user.conf.new
mv secrets/broker_user.conf.new secrets/broker_user.conf
