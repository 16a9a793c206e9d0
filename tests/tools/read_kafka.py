"""Reads whole Kafka topics with Confluent's client and prints one JSON line a message, each partition's in order.

    scripts/python tests/tools/read_kafka.py --brokers 127.0.0.1:9092 [--count N] [--wait SECONDS] TOPIC…

Reads to the end of every partition as it is now. With --count it goes on until there are at least N messages, and then to the end, so that one
too many shows. Exits 1, after printing what there is, if N did not come, or a topic was not there, within --wait seconds (30).
"""

import argparse
import sys
import time

from cloudevents.core.bindings import kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from messages import encoded, judged, readable, show


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--brokers", required=True)
    arguments.add_argument("--count", type=int, default=0)
    arguments.add_argument("--wait", type=float, default=30)
    arguments.add_argument("topics", nargs="+")
    options = arguments.parse_args()

    # The group exists because the client insists on one; nothing is committed to it.
    consumer = Consumer({"bootstrap.servers": options.brokers, "group.id": "reader", "enable.auto.commit": False,
                         "enable.partition.eof": True, "fetch.wait.max.ms": 50, "receive.message.max.bytes": 200_000_000})
    deadline = time.monotonic() + options.wait
    partitions = [(topic, partition) for topic in options.topics for partition in partitions_of(consumer, topic, deadline)]
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for topic, partition in partitions])
    unfinished, count = set(partitions), 0
    while unfinished or count < options.count:
        if time.monotonic() > deadline:
            sys.exit(f"read_kafka: {count} messages of {options.count} within {options.wait} s; not read to its end: {sorted(unfinished)}")
        message = consumer.poll(0.2)
        if message is None:
            continue
        place = (message.topic(), message.partition())
        if message.error() is None:
            unfinished.add(place)
            count += 1
            print_message(message)
        elif message.error().code() == KafkaError._PARTITION_EOF:
            unfinished.discard(place)
        else:
            print(f"read_kafka: {message.error()}", file=sys.stderr)  # The client tries again by itself.
    consumer.close()


def partitions_of(consumer, topic, deadline):
    while (metadata := consumer.list_topics(topic, timeout=10).topics[topic]).error is not None:
        # Of a new topic, a broker hears a little after the controller has made it.
        if time.monotonic() > deadline or metadata.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            sys.exit(f"read_kafka: {topic}: {metadata.error}")
        time.sleep(0.05)
    return sorted(metadata.partitions)


def print_message(message):
    headers, key, value = message.headers() or [], message.key(), message.value()
    show(topic=message.topic(), partition=message.partition(), offset=message.offset(), key=readable(key),
         headers=[[name, readable(text)] for name, text in headers], value=encoded(value), properties=None,
         cloudevent=judged(kafka, kafka.from_kafka_event, kafka.KafkaMessage(headers=dict(headers), key=key, value=value)))


main()
