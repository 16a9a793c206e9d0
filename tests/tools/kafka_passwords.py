"""Gives Kafka's users passwords for SCRAM-SHA-256 and -512, with Confluent's client.

    scripts/python tests/tools/kafka_passwords.py --brokers 127.0.0.1:9092 USER=PASSWORD…

Tries again for two minutes while the cluster has no controller that answers, as on a busy machine just after its start.
"""

import argparse
import time

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

LIMIT = 120  # Seconds.
AWAY = {KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError.REQUEST_TIMED_OUT, KafkaError.NOT_CONTROLLER}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--brokers", required=True)
    arguments.add_argument("users", nargs="+")
    options = arguments.parse_args()

    admin = AdminClient({"bootstrap.servers": options.brokers})
    deadline = time.monotonic() + LIMIT
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        pairs = [user.split("=", 1) for user in options.users]
        orders = [UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 4096), password.encode()) for user, password in pairs]
        while not give(admin, orders, deadline):
            time.sleep(0.2)


def give(admin, orders, deadline):
    """Whether it was done; if not, it is to be tried again."""
    try:
        for done in admin.alter_user_scram_credentials(orders, request_timeout=10).values():
            done.result()
    except KafkaException as error:
        if error.args[0].code() not in AWAY or time.monotonic() > deadline:
            raise
        return False
    return True


main()
