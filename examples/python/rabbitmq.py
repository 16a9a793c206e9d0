"""Reads sipsim-relay's events out of RabbitMQ: each once, and in the order of the queue. The relay keeps a call's order within a routing
key, so for order across its events it has `routing_key = "sipsim.{group}"`.

    pip install pika cloudevents
    RABBITMQ=amqp://guest:guest@127.0.0.1:5672/%2f QUEUE=crm.calls BINDINGS=sipsim.call python rabbitmq.py
"""

import os
import sqlite3

import pika
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event

# Your own database: the mark that an event was handled and what the handling changed are committed together, or neither is.
database = sqlite3.connect(os.environ.get("DATABASE", "handled.db"))
database.execute("CREATE TABLE IF NOT EXISTS handled (id TEXT PRIMARY KEY) WITHOUT ROWID")
database.commit()


def handle(event):
    print(event.get_id(), event.get_type(), event.get_subject() or "-", flush=True)


def take(channel, method, properties, body):
    event = from_rabbitmq_event(RabbitMQMessage(headers=dict(properties.headers or {}), content_type=properties.content_type, body=body))
    with database:  # One transaction; rolled back if handle() fails, and then the program ends: what is not acknowledged comes again, in order.
        if database.execute("INSERT OR IGNORE INTO handled VALUES (?)", [event.get_id()]).rowcount:
            handle(event)
    channel.basic_ack(method.delivery_tag)  # Only now. Never nack with requeue: it comes back behind others.


channel = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ"])).channel()
channel.exchange_declare(os.environ.get("EXCHANGE", "sipsim"), "topic", durable=True)
# One consumer at a time keeps the order; a second one waits, and takes over when the first is gone.
arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
channel.queue_declare(os.environ["QUEUE"], durable=True, arguments=arguments)
for key in os.environ["BINDINGS"].split(","):
    channel.queue_bind(os.environ["QUEUE"], os.environ.get("EXCHANGE", "sipsim"), key)
channel.basic_qos(prefetch_count=100)
channel.basic_consume(os.environ["QUEUE"], take)
channel.start_consuming()
