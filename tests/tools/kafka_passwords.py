"""Gives Kafka's users passwords for SCRAM-SHA-256 and -512, with Confluent's client.

    scripts/python tests/tools/kafka_passwords.py --brokers 127.0.0.1:9092 USER=PASSWORD…
"""

import argparse

from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--brokers", required=True)
    arguments.add_argument("users", nargs="+")
    options = arguments.parse_args()

    admin = AdminClient({"bootstrap.servers": options.brokers})
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        pairs = [user.split("=", 1) for user in options.users]
        orders = [UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 4096), password.encode()) for user, password in pairs]
        for done in admin.alter_user_scram_credentials(orders).values():
            done.result()


main()
