#!/bin/sh
# Publishes one order for orderd, and returns once the broker has confirmed it: only then is it safe.
#
#   producer.sh ID PRODUCT QUANTITY PRICE EMAIL [CURRENCY]
#
# It needs jq and orderd, which reads the broker's address from its configuration or from ORDERD_BROKER__ADDRESSES, and sets
# message_id and delivery_mode.
set -eu
if [ $# -lt 5 ]; then
    echo 'usage: producer.sh ID PRODUCT QUANTITY PRICE EMAIL [CURRENCY]' >&2
    exit 64
fi

order=$(jq --null-input --compact-output \
    --arg id "$1" --arg product "$2" --arg quantity "$3" --arg price "$4" --arg email "$5" --arg currency "${6:-EUR}" \
    '{id: $id, product: $product, quantity: $quantity, price: $price, email: $email, currency: $currency}')

# An order that is published again has the same id, and orderd processes it once.
for wait in 1 2 5 10 stop; do
    status=0
    printf '%s\n' "$order" | orderd publish - || status=$?
    # 69: the broker cannot be reached. Anything else but 0 is an error that another attempt does not mend.
    if [ "$status" -ne 69 ] || [ "$wait" = stop ]; then exit "$status"; fi
    sleep "$wait"
done
