"""Reads sipsim-relay's events out of Kafka: each once, a call's in order, and, in binary mode, only what SIPSIM signed.

    pip install confluent-kafka cloudevents
    KAFKA=127.0.0.1:9092 TOPICS=sipsim.call,sipsim.sms SECRET_FILE=secret python kafka.py
"""

import hashlib
import hmac
import os
import sqlite3
import sys

from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from confluent_kafka import Consumer

secret = open(os.environ["SECRET_FILE"], "rb").read().strip()
# Your own database: the mark that an event was handled and what the handling changed are committed together, or neither is.
database = sqlite3.connect(os.environ.get("DATABASE", "handled.db"))
database.execute("CREATE TABLE IF NOT EXISTS handled (id TEXT PRIMARY KEY) WITHOUT ROWID")
database.commit()


def signed_by_sipsim(headers, body):
    signed = headers.get("x-webhook-timestamp", b"") + b"." + body
    expected = hmac.new(secret, signed, hashlib.sha256).hexdigest().encode()
    return hmac.compare_digest(expected, headers.get("x-webhook-signature", b"").lower())  # In constant time.


def handle(event):
    print(event.get_id(), event.get_type(), event.get_subject() or "-", flush=True)


def take(message):
    headers, body = dict(message.headers() or []), message.value()
    # Binary mode: the value is what SIPSIM sent, to the byte. A structured envelope does not keep the white space around it.
    if "ce_id" in headers and not signed_by_sipsim(headers, body):
        print(f"not from SIPSIM: {message.topic()}[{message.partition()}]@{message.offset()}", file=sys.stderr, flush=True)
        return
    event = from_kafka_event(KafkaMessage(headers=headers, key=message.key(), value=body))
    with database:  # One transaction; rolled back if handle() fails.
        if database.execute("INSERT OR IGNORE INTO handled VALUES (?)", [event.get_id()]).rowcount:
            handle(event)


# A call is a key, a key is a partition, and a partition is read by one member of the group: one after the other keeps the order.
consumer = Consumer({"bootstrap.servers": os.environ["KAFKA"], "group.id": os.environ.get("GROUP", "example"),
                     "auto.offset.reset": "earliest", "enable.auto.commit": False})
consumer.subscribe(os.environ["TOPICS"].split(","))
while True:
    message = consumer.poll(1.0)
    if message is None:
        continue
    if message.error():
        print(message.error(), file=sys.stderr, flush=True)
        continue
    take(message)  # If it fails, the program ends, and begins with this message again.
    consumer.commit(message, asynchronous=False)  # Only now. One commit for many messages is faster, and repeats more.
