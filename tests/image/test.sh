#!/usr/bin/env bash
# Builds the image and runs it as compose.yaml does, with a real broker in a second container. Prints a line for each
# passed check, and exits with 1 at the first failure.
#
# Both containers share a private network with nothing but loopback. At the end, everything except the images is removed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=tests/image/engine.sh
source "$root/tests/image/engine.sh"
# shellcheck source=tests/image/bases.sh
source "$root/tests/image/bases.sh"
# shellcheck source=tests/image/make.sh
source "$root/tests/image/make.sh"

# Orders in each of the two rounds under load.
orders=${ORDERS:-20000}
# Largest allowed size of the image, in MB.
largest=40
# Seconds until `docker stop` kills orderd, as in compose.yaml.
grace=45
# Time limit for each condition, in seconds.
deadline=180
run=orderd-test-$$
broker=$run-broker
orderd=$run-orderd
ledger=$run-ledger
checked=0

ok() {
    checked=$((checked + 1))
    printf 'ok   %s\n' "$*"
}

fail() {
    printf 'FAIL %s\n' "$*"
    printf -- '--- end of the log of orderd\n'
    docker logs --tail 20 "$orderd" 2>&1 || true
    printf -- '--- end of the log of the broker\n'
    docker logs --tail 10 "$broker" 2>&1 || true
    exit 1
}

finish() {
    local status=$?
    trap - EXIT
    docker rm --force --volumes "$orderd" "$broker" >/dev/null 2>&1 || true
    docker volume rm --force "$ledger" >/dev/null 2>&1 || true
    rm -rf "$temporary"
    stop_engine
    exit "$status"
}

# Polls a command until it succeeds.
until_ok() {
    local what=$1 end=$((SECONDS + deadline))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "not within $deadline s: $what"
        sleep 0.2
    done
}

inspect() { docker inspect --format "$1" "$orderd"; }
health_is() { [[ $(inspect '{{.State.Health.Status}}') == "$1" ]]; }
# A field of /proc/PID/status of the running orderd, as seen from outside of the container.
process_status() { sed -n "s/^$1:[[:space:]]*//p" "/proc/$(inspect '{{.State.Pid}}')/status"; }
ready() { docker exec "$orderd" orderd probe --ready; }
queue_depths() { docker exec "$broker" rabbitmqctl --quiet list_queues --no-table-headers name messages; }

# Number of processed orders in the ledger.
processed() {
    docker exec "$orderd" orderd report --since 24h --by status --format csv | awk -F, '$1 == "processed" { n += $3 } END { print n + 0 }'
}
processed_is() { [[ $(processed) == "$1" ]]; }
work_queues_are_empty() { ! queue_depths | awk '$1 !~ /^(dead_letter|unrouted)_queue$/ && $2 > 0 { found = 1 } END { exit !found }'; }
none_dead_lettered() { queue_depths | awk '$1 ~ /^(dead_letter|unrouted)_queue$/ && $2 > 0 { found = 1 } END { exit found }'; }

run_broker() {
    local options=(--detach --name "$broker" --network none --hostname rabbitmq --add-host rabbitmq:127.0.0.1)
    options+=(--user rabbitmq --cap-drop ALL --security-opt no-new-privileges:true)
    options+=(--volume "$root/config/docker/rabbitmq/orderd.conf:/etc/rabbitmq/conf.d/20-orderd.conf:ro")
    options+=(--volume "$root/config/docker/rabbitmq/enabled_plugins:/etc/rabbitmq/enabled_plugins:ro")
    options+=(--volume "$temporary/secrets/broker_user.conf:/etc/rabbitmq/conf.d/30-user.conf:ro")
    docker run "${options[@]}" "$broker_image" >/dev/null
    until_ok "the broker accepts connections" docker exec "$broker" rabbitmq-diagnostics --quiet check_port_connectivity
}

# The restrictions that compose.yaml puts on the container of orderd.
sandbox=(--network "container:$broker" --read-only --cap-drop ALL --security-opt no-new-privileges:true)

run_orderd() {
    docker run --detach --name "$orderd" "${sandbox[@]}" --restart unless-stopped --stop-timeout "$grace" \
        --volume "$root/config/docker/orderd:/etc/orderd:ro" --volume "$temporary/secrets:/run/secrets:ro" \
        --volume "$ledger:/var/lib/orderd" --health-interval 2s "$image" >/dev/null
}

publish() {
    local from=$1 to=$2
    seq "$from" "$to" | awk '{ printf "{\"id\":\"ord-%s\",\"product\":\"Laptop\",\"quantity\":1,\"price\":\"400.00\",\"currency\":\"EUR\"}\n", $1 }' |
        docker run --rm --interactive "${sandbox[@]}" --volume "$root/config/docker/orderd:/etc/orderd:ro" \
            --volume "$temporary/secrets:/run/secrets:ro" "$image" publish - >/dev/null
}

check_image() {
    local bytes user output
    bytes=$(docker image inspect --format '{{.Size}}' "$image")
    ((bytes <= largest * 1000000)) || fail "the image has $bytes bytes, more than $largest MB"
    ok "the image has $((bytes / 100000 / 10)).$((bytes / 100000 % 10)) MB, at most $largest"
    user=$(docker image inspect --format '{{.Config.User}}' "$image")
    [[ $user =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]] || fail "the image's user is \"$user\", must be numeric and not root"
    ok "the image's user is $user"
    output=$(docker run --rm "${sandbox[@]}" --env ORDERD_BROKER__PASSWORD_FILE=/run/secrets/broker_password \
        --volume "$temporary/secrets:/run/secrets:ro" "$image" check 2>&1) || fail "the image's own configuration is invalid: $output"
    ok "the image's own configuration is valid, with the password file named in the environment"
    output=$(docker run --rm "${sandbox[@]}" --env ORDERD_NOTIFY__EMAIL__TYPE=smtp --env ORDERD_NOTIFY__EMAIL__ADDRESS=mail.example.com \
        --env ORDERD_NOTIFY__EMAIL__FROM=orders@example.com --env ORDERD_NOTIFY__EMAIL__TIME_ZONE=Europe/Berlin \
        "$image" check 2>&1) || [[ $output != *time_zone* ]] || fail "the image has no time zones: $output"
    ok "the image has time zones"
    if docker run --rm "${sandbox[@]}" --entrypoint /bin/sh "$image" -c true >/dev/null 2>&1; then fail "there is a shell in the image"; fi
    ok "there is no shell in the image"
}

check_process() {
    local pid
    until_ok "orderd is ready" ready
    ok "orderd probe --ready succeeds in the container; the broker is reached by its host name"
    until_ok "the health check succeeds" health_is healthy
    ok "the health check turned healthy: $(inspect '{{(index .State.Health.Log 0).Output}}')"
    docker exec "$orderd" orderd status >/dev/null || fail "orderd status fails in the container"
    ok "orderd status works in the container, with the token from the file"
    pid=$(inspect '{{.State.Pid}}')
    [[ $(process_status NSpid | awk '{ print $NF }') == 1 ]] || fail "orderd is not process 1 of its container"
    [[ $(process_status Uid) != *$'\t'0* && $(process_status Uid) != 0* ]] || fail "orderd runs as root"
    ok "orderd is process 1, of user $(process_status Uid | cut -f 1)"
    [[ $(process_status CapBnd) == 0000000000000000 && $(process_status NoNewPrivs) == 1 ]] || fail "orderd has privileges or can gain some"
    ok "orderd has no capabilities and cannot gain any"
    awk '$5 == "/" { print $6 }' "/proc/$pid/mountinfo" | grep -qE '^ro(,|$)' || fail "the root file system is writable"
    ok "the root file system is read-only"
    docker logs "$orderd" 2>&1 | awk '!/^\{.*\}$/ { exit 1 }' || fail "the log is not JSON"
    local secret
    for secret in broker_password prometheus_token; do
        if { docker logs "$orderd" 2>&1 && docker inspect "$orderd"; } | grep -F "$(cat "$temporary/secrets/$secret")" >/dev/null; then
            fail "the log or docker inspect shows $secret"
        fi
    done
    ok "the log is JSON; neither the log nor docker inspect shows a secret"
}

# Waits until all orders published so far are processed, and checks that each is processed once.
check_all_processed() {
    local total=$1 why=$2
    until_ok "$total orders are processed" processed_is "$total"
    until_ok "the work queues are empty" work_queues_are_empty
    none_dead_lettered || fail "orders were dead-lettered: $(queue_depths)"
    processed_is "$total" || fail "$(processed) of $total orders were processed"
    ok "$why: $total orders published, $total processed, none dead-lettered"
}

# Waits until some, but not all, of the orders that were published while orderd was stopped are processed.
await_middle() {
    local before=$1 after=$2 now end=$((SECONDS + deadline))
    while :; do
        now=$(processed 2>/dev/null || echo 0)
        if ((now > before)); then break; fi
        ((SECONDS < end)) || fail "no order was processed within $deadline s"
    done
    ((now < after)) || fail "all orders were processed before orderd could be interrupted; set ORDERS to more"
}

check_stop() {
    local begun code middle
    docker stop "$orderd" >/dev/null
    publish 1001 $((1000 + orders))
    docker start "$orderd" >/dev/null
    await_middle 1000 $((1000 + orders))
    begun=$SECONDS
    docker stop "$orderd" >/dev/null
    code=$(inspect '{{.State.ExitCode}}')
    [[ $code == 0 ]] || fail "after docker stop, the exit code is $code"
    ((SECONDS - begun < grace)) || fail "docker stop took $((SECONDS - begun)) s of $grace"
    docker logs --tail 5 "$orderd" 2>&1 | grep -q '"message":"stopped"' || fail "orderd has not logged that it stopped"
    # The broker updates its counts every 5 s.
    until_ok "orders are left in the queue (if all are processed, set ORDERS to more)" orders_are_left
    middle=$(orders_left)
    ok "docker stop under load: drained, exit 0 within $((SECONDS - begun + 1)) s of $grace, $middle orders left in the queue"
    docker start "$orderd" >/dev/null
    check_all_processed $((1000 + orders)) "after the stop and a start"
}

orders_left() { queue_depths | awk '$1 == "order_queue" { print $2 }'; }
orders_are_left() { (($(orders_left) > 0)); }

check_kill() {
    local before=$((1000 + orders)) after=$((1000 + 2 * orders)) pid
    docker stop "$orderd" >/dev/null
    publish $((before + 1)) "$after"
    docker start "$orderd" >/dev/null
    await_middle "$before" "$after"
    pid=$(inspect '{{.State.Pid}}')
    # Not `docker kill`, after which no restart policy applies.
    docker run --rm --pid host --network none --user 0 --entrypoint /bin/kill "$broker_image" -9 "$pid"
    until_ok "orderd is restarted" restarted "$pid"
    ok "kill -9 under load: the restart policy has started it again"
    check_all_processed "$after" "after the kill"
    until_ok "the health check succeeds" health_is healthy
    ok "orderd is healthy again"
}
restarted() { (($(inspect '{{.RestartCount}}') > 0)) && [[ $(inspect '{{.State.Running}} {{.State.Pid}}') == "true "* && $(inspect '{{.State.Pid}}') != "$1" ]]; }

# While the broker is down, orderd is live, not ready, and not restarted.
check_broker_down() {
    local restarts
    restarts=$(inspect '{{.RestartCount}}')
    docker exec "$broker" rabbitmqctl --quiet stop_app >/dev/null
    until_ok "orderd is not ready while the broker is down" not_ready
    docker exec "$orderd" orderd probe >/dev/null || fail "orderd is not live while the broker is down"
    docker exec "$broker" rabbitmqctl --quiet start_app >/dev/null
    until_ok "orderd is ready again" ready
    [[ $(inspect '{{.RestartCount}}') == "$restarts" ]] || fail "orderd was restarted while the broker was down"
    ok "while the broker is down: live, not ready (exit 69), not restarted; ready again afterwards"
}
not_ready() {
    local code=0
    ready || code=$?
    ((code == 69))
}

temporary=$(mktemp -d "${TMPDIR:-/tmp}/orderd-image.XXXXXX")
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
ensure_engine
make_image
provide_broker
# New secrets, made with the script for compose.yaml.
chmod 755 "$temporary"
cp "$root/config/docker/secrets.sh" "$temporary/"
"$temporary/secrets.sh"
chmod 755 "$temporary/secrets"

run_broker
check_image
run_orderd
check_process
publish 1 1000
check_all_processed 1000 "at first"
check_stop
check_kill
check_broker_down
printf '%s passed, 0 failed\n' "$checked"
