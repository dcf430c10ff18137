#!/usr/bin/env python3
"""Publishes orders for orderd: one JSON object per line of standard input."""

import json
import os
import sys
import time

import pika
from pika.exceptions import AMQPConnectionError, AMQPError

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")
WAITS = [1, 2, 5, 10]  # seconds between attempts to reach the broker


class Producer:
    channel = None

    def publish(self, body):
        """Returns once the broker has confirmed the order: only then is it safe."""
        order = json.loads(body)
        # An order that is published again has the same id, and orderd processes it once.
        for wait in WAITS + [None]:
            try:
                self.try_publish(order, body)
                return
            except AMQPConnectionError:
                self.channel = None
                if wait is None:
                    raise
                time.sleep(wait)

    def try_publish(self, order, body):
        if self.channel is None:
            self.channel = pika.BlockingConnection(pika.URLParameters(URL)).channel()
            self.channel.confirm_delivery()  # from now on basic_publish waits for the confirm
        self.channel.basic_publish(
            exchange="orders",
            routing_key="order.priority.created" if order.get("priority") else "order.normal.created",
            body=body,
            properties=pika.BasicProperties(
                message_id=str(order["id"]),
                content_type="application/json",
                delivery_mode=pika.DeliveryMode.Persistent,
            ),
            mandatory=True,
        )


producer = Producer()
try:
    for line in sys.stdin.buffer:
        producer.publish(line.strip())
        print("confirmed:", json.loads(line)["id"])
except AMQPError as error:
    sys.exit(f"not confirmed: {line.decode().strip()}: {error!r}")
