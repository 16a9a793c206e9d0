"""Takes all messages out of RabbitMQ queues with the client pika and prints one JSON line a message, each queue's in order.

    scripts/python tests/tools/read_rabbitmq.py --url amqp://127.0.0.1:5672/%2f [--bind KEY]… [--count N] [--wait SECONDS] QUEUE…

Goes on until there are at least N messages (none without --count) and nothing has come for a second, so that one too many shows. Exits 1, after
printing what there is, if N did not come within --wait seconds (30). Each message is acknowledged once it is printed.

--bind KEY declares the queues (durable; quorum queues with --quorum) and the topic exchange (--exchange, "sipsim"), and binds them to the routing
key, before anything is read. --only-bind ends then.
"""

import argparse
import sys
import time

import pika
from cloudevents.core.bindings import rabbitmq
from messages import encoded, judged, readable, show

IDLE = 1.0  # Seconds. A local broker hands over thousands of messages in that time.


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--url", required=True)
    arguments.add_argument("--bind", action="append", default=[], metavar="KEY")
    arguments.add_argument("--only-bind", action="store_true")
    arguments.add_argument("--quorum", action="store_true")
    arguments.add_argument("--exchange", default="sipsim")
    arguments.add_argument("--count", type=int, default=0)
    arguments.add_argument("--wait", type=float, default=30)
    arguments.add_argument("queues", nargs="+")
    options = arguments.parse_args()

    connection = pika.BlockingConnection(pika.URLParameters(options.url))
    channel = connection.channel()
    if options.bind:
        bind(channel, options)
    if not options.only_bind:
        read(connection, channel, options)
    connection.close()


def bind(channel, options):
    channel.exchange_declare(options.exchange, "topic", durable=True)
    for queue in options.queues:
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"} if options.quorum else None)
        for key in options.bind:
            channel.queue_bind(queue, options.exchange, key)


def read(connection, channel, options):
    count, last = 0, time.monotonic()
    deadline = last + options.wait

    def take(channel, method, properties, body):
        nonlocal count, last
        count, last = count + 1, time.monotonic()
        print_message(method, properties, body)
        channel.basic_ack(method.delivery_tag)

    channel.basic_qos(prefetch_count=1000)
    for queue in options.queues:
        channel.basic_consume(queue, take)
    while count < options.count or time.monotonic() - last < IDLE:
        if count < options.count and time.monotonic() > deadline:
            sys.exit(f"read_rabbitmq: {count} messages of {options.count} within {options.wait} s")
        connection.process_data_events(time_limit=0.1)


def print_message(method, properties, body):
    headers = {name: readable(value) for name, value in (properties.headers or {}).items()}
    message = rabbitmq.RabbitMQMessage(headers=headers, content_type=properties.content_type, body=body)
    names = ["content_type", "message_id", "type", "timestamp", "app_id", "delivery_mode", "content_encoding", "priority", "expiration"]
    show(topic=method.routing_key, exchange=method.exchange, redelivered=method.redelivered, partition=0, offset=0, key=None,
         headers=sorted([name, str(value)] for name, value in headers.items()), value=encoded(body),
         properties={name: value for name in names if (value := getattr(properties, name)) is not None},
         cloudevent=judged(rabbitmq, rabbitmq.from_rabbitmq_event, message))


main()
