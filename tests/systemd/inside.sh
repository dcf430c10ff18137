#!/usr/bin/env bash
# Runs in the container, as root under its systemd: checks what orderd.service promises, writes what it found to
# /opt/results, the exit status to /opt/status, and ends the container.
set -uo pipefail
exec >/opt/results 2>&1
echo 1 >/opt/status
trap 'systemctl exit --force' EXIT

patience=90
checks=0
fail() {
    echo "FAILED: $*"
    echo "--- systemctl status"
    systemctl status --no-pager --lines=0 orderd
    echo "--- journal"
    journalctl --no-pager --output=cat -u orderd | tail -n 60
    exit 1
}
ok() {
    checks=$((checks + 1))
    echo "ok    $*"
}
# check WHAT COMMAND...: the command must succeed.
check() {
    local what=$1
    shift
    "$@" || fail "$what: $*"
    ok "$what"
}
property() { systemctl show -P "$1" orderd; }
is() { [[ $(property "$1") == "$2" ]] || { echo "$1 is $(property "$1"), not $2"; return 1; }; }
# until_so WHAT COMMAND...: the command must succeed within the patience.
until_so() {
    local what=$1 end=$((SECONDS + patience))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "not within ${patience}s: $what"
        sleep 0.2
    done
    ok "$what"
}
# What orderd itself has logged since mark.
mark() { journalctl --sync; cursor=$(journalctl -n 1 --show-cursor --no-pager | sed -n 's/^-- cursor: //p'); }
# Not a pipe: grep ends at the first match, and then journalctl could not write.
# And never at once: the journal may not have read yet what was logged.
says() { grep -qi -- "$1" < <(journalctl --no-pager --output=cat -u orderd --after-cursor "$cursor"); }
# Settings for the time of one check, in a drop-in.
with() { mkdir -p /run/systemd/system/orderd.service.d && printf '[Service]\n%s\n' "$@" >/run/systemd/system/orderd.service.d/test.conf && systemctl daemon-reload; }
without() { rm -f /run/systemd/system/orderd.service.d/test.conf && systemctl daemon-reload; }
publish() { orderd publish --set broker.password_file=/etc/credstore/orderd.broker --set admin.token_file=/etc/credstore/orderd.admin - <<<"{\"id\": \"$1\", \"product\": \"Laptop\", \"quantity\": 1, \"price\": \"400.00\"}"; }
processed() { orderd trace "$1" --set broker.password_file=/etc/credstore/orderd.broker --set management.url=http://127.0.0.1:1 --set admin.token_file=/etc/credstore/orderd.admin --format json | grep -q '"processed"'; }
# The answer to a request to the admin listener.
ask() {
    exec 7<>"/dev/tcp/127.0.0.1/$ADMIN_PORT" || return 1
    printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n' "$1" "${2:+Authorization: Bearer $2$'\r\n'}" >&7
    cat <&7
    exec 7>&-
}
told() { grep -q "$1" < <(ask /api/v1/status "$(cat /etc/credstore/orderd.admin)"); }
# The process first: asked the other way round, it may end in between, and there is none (0) until the next starts.
another_pid() { local now; now=$(property MainPID) && [[ $now != 0 && $now != "$pid" ]] && is ActiveState active; }

version=$(systemctl --version | awk 'NR == 1 { print $2 }')
echo "systemd $version"
systemctl daemon-reload
journalctl --sync

# -- the unit
check "the unit's exposure is at most 1.5" systemd-analyze security --offline=true --threshold=15 --no-pager /usr/local/lib/systemd/system/orderd.service >/opt/security
grep Overall /opt/security | tail -n 1
if ((version >= 253)); then check "the service's type is notify-reload" is Type notify-reload; else check "the service's type is notify, on systemd before 253" is Type notify; fi

# -- start
mark
check "it starts" systemctl start orderd
check "it is active when start returns" is ActiveState active
check "its consumers have subscribed by then" bash -c '[[ $(systemctl show -P StatusText orderd) != *"no subscription"* ]]'
[[ $(property StatusText) == *consumers,* ]] || fail "STATUS is $(property StatusText)"
ok "STATUS: $(property StatusText)"
until_so "ExecStartPre has told what would run" says "RETRY\|DEAD AT THE LATEST"
pid=$(property MainPID)
uid=$(stat -c %u "/proc/$pid")
check "its user is dynamic, nobody of /etc/passwd" bash -c "((61184 <= $uid && $uid <= 65519)) && ! grep -q orderd /etc/passwd"
# As it sees it itself: newer systemds map the owner, so that on the disk it is nobody.
check "its ledger is in its state directory, its own" [ "$(stat -c %u "/proc/$pid/root/var/lib/private/orderd/orderd.db")" = "$uid" ]
check "nobody else may look into it" [ "$(stat -L -c %a /var/lib/private/orderd)" = 700 ]
check "the password is neither in its environment nor in its arguments" bash -c "! grep -q '$(cat /etc/credstore/orderd.broker)' /proc/$pid/environ /proc/$pid/cmdline"
check "the admin token of LoadCredential is asked for" grep -q "^HTTP/1.1 401" <(ask /api/v1/status)
check "and taken" told "^HTTP/1.1 200"
check "it has no capabilities" grep -q 'CapBnd:.0000000000000000' "/proc/$pid/status"
check "an order is published" publish first
until_so "and processed, with the broker's password from LoadCredential" processed first

# -- reload
check "a first configuration is in force" told '"config_generation":1,'
sed -i '0,/^workers = 4/s//workers = 5/' /etc/orderd/orderd.toml
check "systemctl reload succeeds" systemctl reload orderd
if ((version >= 253)); then
    check "and returns only when the new configuration is in force" told '"config_generation":2,'
else
    until_so "and the new configuration comes into force" told '"config_generation":2,'
fi
until_so "it is active again" is ActiveState active
check "it is the same process" is MainPID "$pid"

# -- stop
mark
check "it stops" systemctl stop orderd
check "it is inactive" is ActiveState inactive
check "the result is success" is Result success
until_so "it has drained" says "draining;"
until_so "to the end" says "app: stopped"

# -- kill -9
check "it starts again" systemctl start orderd
pid=$(property MainPID)
kill -9 "$pid"
until_so "after kill -9 it is restarted" another_pid
check "once" is NRestarts 1

# -- the watchdog
with WatchdogSec=6s
check "it restarts with a short watchdog" systemctl restart orderd
pid=$(property MainPID)
mark
kill -STOP "$pid"
until_so "a process that is stopped is killed by the watchdog and restarted" another_pid
until_so "the journal says why" says "watchdog timeout"
with WatchdogSec=6s Environment=ORDERD_CONSUMERS__ORDER__FAULTS__BLOCK=1
check "it restarts with handlers that block" systemctl restart orderd
pid=$(property MainPID)
mark
check "an order is published" publish blocked
until_so "a handler that blocks its thread has it killed by the watchdog and restarted" another_pid
until_so "the log names the consumer" says 'a worker of consumer order does not give its thread back'
with WatchdogSec=6s
check "it restarts with handlers that do not block" systemctl restart orderd
until_so "the order is processed after all" processed blocked
pid=$(property MainPID)

# -- a drain longer than TimeoutStopSec
with TimeoutStopSec=3s Environment=ORDERD_CONSUMERS__ORDER__FAULTS__HANG=1 Environment=ORDERD_CONSUMERS__ORDER__TIMEOUT=10min Environment=ORDERD_SHUTDOWN__DRAIN_TIMEOUT=10s
check "it restarts with handlers that hang" systemctl restart orderd
check "an order is published" publish hanging
until_so "it is in hand" bash -c '[[ $(systemctl show -P StatusText orderd) == *" 1 in flight"* ]]'
mark
check "it stops" systemctl stop orderd
check "a drain longer than TimeoutStopSec is waited for" is Result success
until_so "to its end" says 'the drain took too long'

# -- a broker that is away
with TimeoutStartSec=5s Environment=ORDERD_BROKER__ADDRESSES=127.0.0.1:1
systemctl start --no-block orderd
until_so "it waits for a broker that is away" bash -c '[[ $(systemctl show -P StatusText orderd) == "waiting for the broker" ]]'
pid=$(property MainPID)
begun=$SECONDS
waits_on() { ((SECONDS > begun + 15)); }
until_so "for three times TimeoutStartSec" waits_on
check "and is neither given up nor restarted" is MainPID "$pid"
check "but activating" is ActiveState activating
check "it stops meanwhile" systemctl stop orderd
check "and that is a success" is Result success
without

# -- a configuration that is wrong
echo 'nonsense = 1' >>/etc/orderd/orderd.toml
mark
systemctl start orderd && fail "it started with a wrong configuration"
check "a wrong configuration is a failure, and not restarted" is ActiveState failed
check "with exit status 78" is ExecMainStatus 78
until_so "and the log says what is wrong" says nonsense

# -- uninstalled units leave nothing behind that runs
echo "$checks checks passed under systemd $version"
echo 0 >/opt/status
