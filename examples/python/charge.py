#!/usr/bin/env python3
"""Charges cards: the step POST /charge, and its undo, POST /refund. Standard library only."""

import json
import os
import sqlite3
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

directory = os.environ.get("SHOP_DATA", os.path.expanduser("~/shop-data"))
os.makedirs(directory, exist_ok=True)
# The answer to each idempotency key: orderd repeats a call whose answer it has not seen.
database = sqlite3.connect(f"{directory}/charges.db", check_same_thread=False)
database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
lock = threading.Lock()


def find(key):
    return database.execute("SELECT answer FROM answers WHERE key = ?", [key]).fetchone()


def charge(key, order):
    if find(f"{key}/undo"):  # this call is so late that its undo came first
        return 409, "the charge was refunded before it was made"
    if Decimal(order["total"]) > 5000:
        return 402, "the card was refused"
    return 200, json.dumps({"payment": f"pay-{key}", "amount": order["total"]})


def refund(key, order):
    # The charge may never have been made: then there is nothing to refund, which is no error.
    charged = find(key.removesuffix("/undo"))
    return 200, json.dumps({"refunded": json.loads(charged[0])["amount"] if charged else "0"})


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key, action = self.headers["Idempotency-Key"], {"/charge": charge, "/refund": refund}.get(self.path)
        with lock, database:  # commits at its end
            if not key or not action:
                status, answer = 404, "no such step"
            elif known := find(key):
                status, answer = 200, known[0]
            else:
                status, answer = action(key, json.loads(body)["order"])
                if status == 200:
                    database.execute("INSERT INTO answers VALUES (?, ?)", [key, answer])
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer.encode())))
        self.end_headers()
        self.wfile.write(answer.encode())


host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8081"))
ThreadingHTTPServer((host, port), Handler).serve_forever()
