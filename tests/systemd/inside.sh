#!/usr/bin/env bash
# Runs in the container, as root under its systemd: checks orderd.service, writes the results to /opt/results and the exit
# status to /opt/status, and ends the container.
set -uo pipefail
exec >/opt/results 2>&1
echo 1 >/opt/status
trap 'systemctl exit --force' EXIT

deadline=90
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
# wait_until WHAT COMMAND...: the command must succeed within the deadline.
wait_until() {
    local what=$1 end=$((SECONDS + deadline))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "not within ${deadline}s: $what"
        sleep 0.2
    done
    ok "$what"
}
# mark, then journal_has TEXT: whether orderd's journal contains the text since the mark.
mark() { journalctl --sync; cursor=$(journalctl -n 1 --show-cursor --no-pager | sed -n 's/^-- cursor: //p'); }
# Not a pipe: grep ends at the first match, and then journalctl could not write. Use it with wait_until, since the journal
# may not contain yet what was logged.
journal_has() { grep -qi -- "$1" < <(journalctl --no-pager --output=cat -u orderd --after-cursor "$cursor"); }
# Settings of the unit for some checks, in a drop-in.
with() { mkdir -p /run/systemd/system/orderd.service.d && printf '[Service]\n%s\n' "$@" >/run/systemd/system/orderd.service.d/test.conf && systemctl daemon-reload; }
without() { rm -f /run/systemd/system/orderd.service.d/test.conf && systemctl daemon-reload; }
publish() { orderd publish --set broker.password_file=/etc/credstore/orderd.broker - <<<"{\"id\": \"$1\", \"product\": \"Laptop\", \"quantity\": 1, \"price\": \"400.00\"}"; }
processed() { orderd trace "$1" --set broker.password_file=/etc/credstore/orderd.broker --set management.url=http://127.0.0.1:1 --format json | grep -q '"processed"'; }
# The response of the admin listener to GET PATH [TOKEN].
http_get() {
    exec 7<>"/dev/tcp/127.0.0.1/$ADMIN_PORT" || return 1
    printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n' "$1" "${2:+Authorization: Bearer $2$'\r\n'}" >&7
    cat <&7
    exec 7>&-
}
status_has() { grep -q "$1" < <(http_get /api/v1/status "$(cat /etc/credstore/orderd.admin)"); }
# The pid first: in the other order, the process could end in between. Until the next one starts, the pid is 0.
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
wait_until "ExecStartPre has shown what would run" journal_has "DEAD-LETTERED AFTER AT MOST"
pid=$(property MainPID)
uid=$(stat -c %u "/proc/$pid")
check "its user is dynamic, not one of /etc/passwd" bash -c "((61184 <= $uid && $uid <= 65519)) && ! grep -q orderd /etc/passwd"
# As the process sees it: newer systemds map the owner, so that outside it is nobody.
check "its ledger is in its state directory and belongs to its user" [ "$(stat -c %u "/proc/$pid/root/var/lib/private/orderd/orderd.db")" = "$uid" ]
check "no other user may read that directory" [ "$(stat -L -c %a /var/lib/private/orderd)" = 700 ]
check "the password is neither in its environment nor in its arguments" bash -c "! grep -q '$(cat /etc/credstore/orderd.broker)' /proc/$pid/environ /proc/$pid/cmdline"
check "the admin listener requires the token from LoadCredential" grep -q "^HTTP/1.1 401" <(http_get /api/v1/status)
check "and accepts it" status_has "^HTTP/1.1 200"
check "it has no capabilities" grep -q 'CapBnd:.0000000000000000' "/proc/$pid/status"
check "an order is published" publish first
wait_until "and processed, with the broker's password from LoadCredential" processed first

# -- reload
check "the first configuration is active" status_has '"config_generation":1,'
sed -i '0,/^workers = 4/s//workers = 5/' /etc/orderd/orderd.toml
check "systemctl reload succeeds" systemctl reload orderd
if ((version >= 253)); then
    check "and returns only when the new configuration is active" status_has '"config_generation":2,'
else
    wait_until "and the new configuration becomes active" status_has '"config_generation":2,'
fi
wait_until "it is active again" is ActiveState active
check "it is the same process" is MainPID "$pid"

# -- stop
mark
check "it stops" systemctl stop orderd
check "it is inactive" is ActiveState inactive
check "the result is success" is Result success
wait_until "it has started to drain" journal_has "draining;"
wait_until "and finished" journal_has ": stopped"

# -- kill -9
check "it starts again" systemctl start orderd
pid=$(property MainPID)
kill -9 "$pid"
wait_until "after kill -9 it is restarted" another_pid
check "once" is NRestarts 1

# -- the watchdog
with WatchdogSec=6s
check "it restarts with a short watchdog" systemctl restart orderd
pid=$(property MainPID)
mark
kill -STOP "$pid"
wait_until "the watchdog kills a stopped process, and it is restarted" another_pid
wait_until "the journal says why" journal_has "watchdog timeout"
with WatchdogSec=6s Environment=ORDERD_CONSUMERS__ORDER__FAULTS__BLOCK=1
check "it restarts with handlers that block" systemctl restart orderd
pid=$(property MainPID)
mark
check "an order is published" publish blocked
wait_until "the watchdog kills a process with a blocked worker thread, and it is restarted" another_pid
wait_until "the log names the consumer" journal_has 'a worker of consumer order does not yield its thread'
with WatchdogSec=6s
check "it restarts with handlers that do not block" systemctl restart orderd
wait_until "the order is processed in the end" processed blocked
pid=$(property MainPID)

# -- a drain longer than TimeoutStopSec
with TimeoutStopSec=3s Environment=ORDERD_CONSUMERS__ORDER__FAULTS__HANG=1 Environment=ORDERD_CONSUMERS__ORDER__TIMEOUT=10min Environment=ORDERD_SHUTDOWN__DRAIN_TIMEOUT=10s
check "it restarts with handlers that hang" systemctl restart orderd
check "an order is published" publish hanging
wait_until "it is in flight" bash -c '[[ $(systemctl show -P StatusText orderd) == *" 1 in flight"* ]]'
mark
check "it stops" systemctl stop orderd
check "a drain longer than TimeoutStopSec is waited for" is Result success
wait_until "to its end" journal_has 'the drain took too long'

# -- an unreachable broker
with TimeoutStartSec=5s Environment=ORDERD_BROKER__ADDRESSES=127.0.0.1:1
systemctl start --no-block orderd
wait_until "it waits for an unreachable broker" bash -c '[[ $(systemctl show -P StatusText orderd) == "waiting for the broker" ]]'
pid=$(property MainPID)
begun=$SECONDS
has_waited() { ((SECONDS > begun + 15)); }
wait_until "for three times TimeoutStartSec" has_waited
check "and is neither stopped nor restarted" is MainPID "$pid"
check "it is still activating" is ActiveState activating
check "it stops meanwhile" systemctl stop orderd
check "and that is a success" is Result success
without

# -- an invalid configuration
echo 'nonsense = 1' >>/etc/orderd/orderd.toml
mark
systemctl start orderd && fail "it started with an invalid configuration"
check "an invalid configuration is a failure without a restart" is ActiveState failed
check "with exit status 78" is ExecMainStatus 78
wait_until "and the log names the problem" journal_has nonsense

echo "$checks checks passed under systemd $version"
echo 0 >/opt/status
