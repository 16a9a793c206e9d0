"""Checks docs/asyncapi.yaml: by @asyncapi/parser, and against what the program says that it publishes to.

    scripts/python tests/tools/asyncapi.py target/debug/sipsim-relay
"""

import fnmatch
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import ruamel.yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/asyncapi.yaml"
DEFAULTS = "[outputs.kafka]\n[outputs.rabbitmq]\n"


def main():
    problems = diagnosed() + compared(pathlib.Path(sys.argv[1]).resolve())
    for problem in problems:
        print(f"docs/asyncapi.yaml: {problem}")
    print(f"docs/asyncapi.yaml: {len(problems)} problems")
    sys.exit(1 if problems else 0)


def diagnosed():
    command = [ROOT / "scripts/node", "tests/tools/node", "tests/tools/asyncapi.js", str(DOCUMENT)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


def compared(program):
    document = ruamel.yaml.YAML(typ="safe").load(DOCUMENT)
    topics, keys, exchange, bindings = needed(program)
    events = {topic.removeprefix("sipsim.") for topic in topics}
    problems = []

    def same(what, found, expected):
        if found != expected:
            problems.append(f"{what}: {found} and not {expected}")

    same("messages", set(document["components"]["messages"]), events)
    channels = {name.split(".", 1)[0]: {} for name in document["channels"]}
    for name, channel in document["channels"].items():
        broker, event = name.split(".", 1)
        channels[broker][event] = channel
        same(f"{name}: messages", channel["messages"], {event: {"$ref": f"#/components/messages/{event}"}})
        same(f"{name}: server", channel["servers"], [{"$ref": f"#/servers/{broker}"}])
        operation = document["operations"].get(f"publish.{name}", {})
        same(f"{name}: operation", (operation.get("action"), operation.get("channel")), ("send", {"$ref": f"#/channels/{name}"}))
    same("operations", len(document["operations"]), len(document["channels"]))
    same("channels", {broker: set(all) for broker, all in channels.items()}, {"kafka": events, "rabbitmq": events})
    for event, channel in channels["kafka"].items():
        same(f"kafka.{event}", (channel["address"], channel["bindings"]["kafka"]["topic"]), (f"sipsim.{event}", f"sipsim.{event}"))
    for event, channel in channels["rabbitmq"].items():
        key, binding = channel["address"], channel["bindings"]["amqp"]
        same(f"rabbitmq.{event}: is", binding["is"], "routingKey")
        same(f"rabbitmq.{event}: exchange", {name: binding["exchange"][name] for name in ("name", "type", "durable", "vhost")}, exchange)
        queues = [queue for queue, pattern in bindings if fnmatch.fnmatch(key, pattern)]
        same(f"rabbitmq.{event}: queues that {key} reaches", queues, [key.rsplit(".", 1)[0]])
        same(f"rabbitmq.{event}: address", (key, key in keys), (key, True))
        same(f"rabbitmq.{event}: last word of {key}", key.rsplit(".", 1)[1], event)
    for event, message in document["components"]["messages"].items():
        envelope, own = message["payload"]["schema"]["allOf"]
        same(f"{event}: envelope", envelope, {"$ref": "../schemas/envelope.schema.json"})
        same(f"{event}: type", own["properties"]["type"], {"const": f"com.sipsim.{event}"})
        data = None if event == "unknown" else {"$ref": f"../schemas/events/{event}.schema.json"}
        same(f"{event}: data", own["properties"].get("data"), data)
    return problems


def needed(program):
    """Topics, routing keys, the exchange, and (queue, binding key) of a configuration that says nothing but that there are both brokers."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "relay.toml"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}

        def topics(form, configuration=DEFAULTS):
            file.write_text(configuration)
            return subprocess.run([program, "topics", "--format", form], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

        def names(configuration):
            resources = ruamel.yaml.YAML(typ="safe").load_all(topics("strimzi", configuration))
            return {resource["spec"]["topicName"] for resource in resources}

        # Routing keys are printed nowhere one by one, but as the names of topics by the same template.
        kafka, keys = names(DEFAULTS), names('[outputs.kafka]\ntopic = "sipsim.{group}.{event}"\n')
        definitions = json.loads(topics("rabbitmq"))
    [exchange] = definitions["exchanges"]
    bindings = [(binding["destination"], binding["routing_key"]) for binding in definitions["bindings"]]
    return kafka, keys, {name: exchange[name] for name in ("name", "type", "durable", "vhost")}, bindings


main()
