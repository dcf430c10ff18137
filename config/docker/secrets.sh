#!/usr/bin/env bash
# Makes the passwords of compose.yaml, each as a file in secrets/ beside it; those that are there stay.
#
# Compose hands such files to containers as they are, owner and mode included, and each container has a user of its own,
# so everybody may read the files; the directory keeps others on this machine from them.
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
make_secret admin_token
make_secret grafana_password
printf 'default_pass = %s\n' "$(cat secrets/broker_password)" >secrets/broker_user.conf.new
chmod 444 secrets/broker_user.conf.new
mv secrets/broker_user.conf.new secrets/broker_user.conf
