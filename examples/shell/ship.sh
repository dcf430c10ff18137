#!/bin/sh
# Ships parcels: the step, and with the argument "cancel" its undo. It is started for each call (mode = "per_message"), reads
# the request from standard input and writes its result to standard output. It needs jq.
#
# Exit codes: 0 done, 75 try again later, others refused, with the reason on standard error.
set -eu
directory=${SHOP_DATA:-$HOME/shop-data}/parcels
mkdir -p "$directory" || exit 75
# Without jq, every order would be refused.
command -v jq >/dev/null || exit 75

# The answer to each idempotency key has a file: orderd repeats a call whose answer it has not seen.
file_of() { printf '%s/%s' "$directory" "$(printf '%s' "$1" | sha256sum | cut -c 1-64)"; }
answer=$(file_of "$IDEMPOTENCY_KEY")
if [ -e "$answer" ]; then exec cat "$answer"; fi

keep() {
    printf '%s\n' "$1" >"$answer.$$" && sync "$answer.$$" && mv "$answer.$$" "$answer" && sync "$directory" || exit 75
    cat "$answer"
}

request=$(cat)
case ${1:-ship} in
ship)
    if [ -e "$(file_of "$IDEMPOTENCY_KEY/undo")" ]; then
        echo "the parcel was cancelled before it was sent" >&2 # this call is so late that its undo came first
        exit 1
    fi
    country=$(printf '%s' "$request" | jq -r '.message.ship_to.country // "DE"')
    if [ "$country" = AQ ]; then
        echo "no carrier delivers to $country" >&2
        exit 1
    fi
    # The customer is notified: orderd publishes the event before the step counts as done.
    result=$(printf '%s' "$request" | jq -c --arg parcel "parcel-$IDEMPOTENCY_KEY" '{
        parcel: $parcel,
        payment: .steps.charge.payment,
        events: [{
            routing_key: "order.notification.email",
            body: {event: "shipped", order_id: .order.id, email: .order.email, parcel: $parcel}
        }]
    }')
    keep "$result"
    ;;
cancel)
    # It may never have been shipped: then there is nothing to cancel, which is no error.
    if [ -e "$(file_of "${IDEMPOTENCY_KEY%/undo}")" ]; then keep '{"cancelled": true}'; else keep '{"cancelled": false}'; fi
    ;;
*)
    echo "usage: ship.sh [ship|cancel]" >&2
    exit 64
    ;;
esac
