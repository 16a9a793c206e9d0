"""Gives a Kafka user a right, or takes it away, with Confluent's client.

    scripts/python tests/tools/kafka_acls.py --brokers 127.0.0.1:9092 allow|revoke USER OPERATION TOPIC…
"""

import argparse

from confluent_kafka.admin import (AclBinding, AclBindingFilter, AclOperation, AclPermissionType, AdminClient, ResourcePatternType,
                                   ResourceType)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--brokers", required=True)
    arguments.add_argument("what", choices=["allow", "revoke"])
    arguments.add_argument("user")
    arguments.add_argument("operation", help="write, describe, describe_configs, …")
    arguments.add_argument("topics", nargs="+")
    options = arguments.parse_args()

    admin = AdminClient({"bootstrap.servers": options.brokers})
    kind, order = (AclBinding, admin.create_acls) if options.what == "allow" else (AclBindingFilter, admin.delete_acls)
    operation = AclOperation[options.operation.upper()]
    those = [kind(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{options.user}", "*", operation, AclPermissionType.ALLOW)
             for topic in options.topics]
    for done in order(those, request_timeout=30).values():
        done.result()


main()
