"""Does what teams do that have only the documentation: applies what `topics` prints to real brokers, and runs the consumers of examples/ against them.

    scripts/python tests/tools/examples.py PROGRAM LANGUAGE…        PROGRAM: target/debug/sipsim-relay; LANGUAGE: python, node, java

A relay publishes into Kafka in both modes and into RabbitMQ: a call of many events, SIPSIM's payloads, one event signed anew (which is published twice,
with one id), and somebody else writes a record with a wrong signature into the binary topic. Each consumer must print each event once, a call's in
order, and nothing of the forged record. Exits 1 and says what is not so.
"""

import collections
import hashlib
import hmac
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import ruamel.yaml
from confluent_kafka import Producer
from jsonschema import Draft202012Validator

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECRET = "a-secret-of-the-examples"
GROUPS = ["call", "ai", "sms", "test"]
LIMIT = 180  # Seconds. Nothing here takes a tenth of it, unless the machine is busy.
# The published shape of Strimzi's KafkaTopic.
KAFKA_TOPIC = {
    "type": "object", "required": ["apiVersion", "kind", "metadata", "spec"], "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "kafka.strimzi.io/v1"}, "kind": {"const": "KafkaTopic"},
        "metadata": {"type": "object", "required": ["name", "labels"], "additionalProperties": False, "properties": {
            "name": {"type": "string", "maxLength": 253, "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"},
            "labels": {"type": "object", "required": ["strimzi.io/cluster"], "additionalProperties": {"type": "string"}}}},
        "spec": {"type": "object", "additionalProperties": False, "properties": {
            "topicName": {"type": "string", "pattern": "^[a-zA-Z0-9._-]{1,249}$"}, "partitions": {"type": "integer", "minimum": 1},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 32767}, "config": {"type": "object"}}}}}


def main():
    program, languages = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    work = pathlib.Path(tempfile.mkdtemp(prefix="sipsim-relay-examples-"))
    work.chmod(0o711)  # RabbitMQ's user has to pass through it.
    processes = []
    try:
        brokers = started(work)
        relay = Relay(program, work, brokers)
        apply_kafka(relay, work, brokers)
        apply_rabbitmq(relay, brokers)
        check_strimzi(relay)
        relay.start(processes)
        consumers = [consumer for language in languages for consumer in start_consumers(language, work, brokers, processes)]
        wait("every queue to have its consumer", lambda: all(waiting(brokers, language) for language in languages))
        expected = relay.send()
        forge(brokers)
        expected.append(relay.post(b'{"event":"test","message":"the end","pbx_id":"test_000000"}'))
        for consumer in consumers:
            consumer.judge(expected)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run([ROOT / "scripts/brokers", "stop", "--kill", "--dir", work / "brokers"], check=False)
        shutil.rmtree(work, ignore_errors=True)


def started(work):
    command = [ROOT / "scripts/brokers", "start", "all", "--dir", work / "brokers", "--while", str(os.getpid())]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(line.split("=", 1) for line in printed.splitlines())


class Relay:
    def __init__(self, program, work, brokers):
        self.program, self.work = program, work
        self.ingress, self.admin = free_port(), free_port()
        (work / "secret").write_text(SECRET + "\n")
        (work / "secret").chmod(0o600)
        (work / "relay.toml").write_text(f"""
ingress.listen = "127.0.0.1:{self.ingress}"
admin.listen = "127.0.0.1:{self.admin}"
accounts.default.secrets = "secret"
[outputs.kafka]
brokers = "{brokers["KAFKA"]}"
topic = "sipsim.{{group}}"
[outputs.binary]
type = "kafka"
mode = "binary"
brokers = "{brokers["KAFKA"]}"
topic = "binary"
[outputs.rabbitmq]
urls = ["{brokers["RABBITMQ"]}"]
routing_key = "sipsim.{{group}}"
""")

    def run(self, *args):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        return subprocess.run([self.program, *args], cwd=self.work, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    def start(self, processes):
        with open(self.work / "relay.log", "w") as log:
            processes.append(subprocess.Popen([self.program, "run"], cwd=self.work, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True))
        wait("the relay to be ready", lambda: self.get("/readyz"))

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return None

    def post(self, body, ago=0):
        """Signs and posts a body; its id, and the call that it belongs to."""
        timestamp = str(int(time.time()) - ago)
        signature = hmac.new(SECRET.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        headers = {"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": signature}
        request = urllib.request.Request(f"http://127.0.0.1:{self.ingress}/webhooks/sipsim", body, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            event = json.loads(body)
            return json.load(answer)["id"], str(event.get("pbx_id") or event.get("call_id") or "-")

    def send(self):
        bodies = [json.dumps({"event": "tags", "pbx_id": "call_of_many", "tags": [str(n)]}).encode() for n in range(30)]
        bodies += [path.read_bytes() for path in sorted((ROOT / "tests/payloads").glob("*.json"))]
        sent = [self.post(body) for body in bodies]
        again = [self.post(body, ago=60) for body in bodies[:5]]
        if again != sent[:5]:
            sys.exit(f"signed anew, the same event has another id: {again}")
        wait("all to be published", lambda: published(self.get("/metrics")) == 3 * (len(sent) + len(again)))
        return sent


def published(metrics):
    return sum(float(value) for value in re.findall(r"^sipsim_relay_events_published_total\{.*\} (\S+)$", metrics or "", re.M))


def apply_kafka(relay, work, brokers):
    """Fills the placeholders in, and lets a shell and Kafka's own tool do the rest."""
    script = relay.run("topics", "--format", "kafka")
    filled = script.replace("PARTITIONS=\n", "PARTITIONS=3\n").replace("RETENTION_MS=\n", "RETENTION_MS=86400000\n")
    if filled.count("PARTITIONS=3\n") != 1 or filled.count("RETENTION_MS=86400000\n") != 1:
        sys.exit(f"topics --format kafka has no placeholders:\n{script}")
    jars = (work / "brokers/kafka/pid").read_text().strip()
    arguments = pathlib.Path(f"/proc/{jars}/cmdline").read_bytes().split(b"\0")
    tool = work / "kafka-topics.sh"
    tool.write_text(f"#!/bin/sh\nexec java -XX:TieredStopAtLevel=1 -cp '{arguments[arguments.index(b'-cp') + 1].decode()}' org.apache.kafka.tools.TopicCommand \"$@\"\n")
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{work}:{os.environ['PATH']}"}
    for _ in range(2):  # The second time changes nothing.
        subprocess.run(["sh", "-eu"], input=filled, text=True, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        filled = "\n".join(filled.splitlines()[:5])  # One topic of them shows it.
    described = subprocess.run([tool, "--bootstrap-server", brokers["KAFKA"], "--describe"], check=True, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True).stdout
    found = {topic: (partitions, "retention.ms=86400000" in configs)
             for topic, partitions, configs in re.findall(r"^Topic: (\S+)\s.*PartitionCount: (\d+)\s.*Configs: (.*)$", described, re.M)}
    needed = {f"sipsim.{group}" for group in [*GROUPS, "unknown"]} | {"binary"}
    if found != dict.fromkeys(needed, ("3", True)):
        sys.exit(f"what topics --format kafka made is not what was asked for: {found}")
    print("topics --format kafka: applied, placeholders and all", flush=True)


def management(brokers, method, path, body=None):
    request = urllib.request.Request(brokers["RABBITMQ_MANAGEMENT"] + path, body, method=method,
                                     headers={"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
        return json.loads(text) if text else None


def apply_rabbitmq(relay, brokers):
    definitions = relay.run("topics", "--format", "rabbitmq")
    for _ in range(2):  # The second time changes nothing.
        management(brokers, "POST", "/api/definitions", definitions.encode())
    bound = {(binding["destination"], binding["routing_key"]) for binding in management(brokers, "GET", "/api/exchanges/%2f/sipsim/bindings/source")}
    if bound != {(f"sipsim.{group}", f"sipsim.{group}{rest}") for group in [*GROUPS, "unknown"] for rest in ("", ".*")}:
        sys.exit(f"what topics --format rabbitmq bound: {bound}")

    def governed():
        queues = management(brokers, "GET", "/api/queues")
        return all(queue.get("policy") == "sipsim" and queue["effective_policy_definition"].get("overflow") == "reject-publish"
                   and queue["arguments"] == {"x-queue-type": "quorum"} for queue in queues)

    wait("the policy to hold for every queue", governed)
    print("topics --format rabbitmq: applied, with its policy", flush=True)


def check_strimzi(relay):
    for text in [(text := relay.run("topics", "--format", "strimzi")), re.sub(r"^(  +)# (?=(  )?[a-z.]+:)", r"\1", text, flags=re.M)]:
        resources = list(ruamel.yaml.YAML(typ="safe").load_all(text))
        for resource in resources:
            Draft202012Validator(KAFKA_TOPIC).validate(resource)
    if len(resources) != 6 or any(resource["spec"].get("partitions") != 12 or "retention.ms" not in resource["spec"]["config"] for resource in resources):
        sys.exit(f"topics --format strimzi has no placeholders:\n{text}")
    print("topics --format strimzi: KafkaTopics, with and without their placeholders", flush=True)


def forge(brokers):
    """What somebody writes who may write into the topic, and does not know the secret."""
    producer = Producer({"bootstrap.servers": brokers["KAFKA"]})
    attributes = {"ce_specversion": "1.0", "ce_id": "forged", "ce_source": "/sipsim/default", "ce_type": "com.sipsim.test", "content-type": "application/json"}
    for proof in [{"x-webhook-timestamp": "1736937000", "x-webhook-signature": "0" * 64}, {}]:
        producer.produce("binary", b'{"event":"test"}', "test_000000", headers=list({**attributes, **proof}.items()))
    if producer.flush(30):
        sys.exit("the forged records were not delivered")


class Consumer:
    def __init__(self, name, command, environment, work, processes, forged):
        self.name, self.forged = name, forged
        self.output = work / (name.replace(" ", "-").replace("/", "-"))
        self.output.mkdir()
        with open(self.output / "stdout", "w") as out, open(self.output / "stderr", "w") as err:
            environment = {**os.environ, **environment, "DATABASE": str(self.output / "handled.db")}
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        processes.append(self.process)

    def lines(self):
        if self.process.poll() is not None:
            sys.exit(f"{self.name} ended: {(self.output / 'stderr').read_text()}")
        text = (self.output / "stdout").read_text()
        return [line.split() for line in text[:text.rfind("\n") + 1].splitlines()]

    def judge(self, expected):
        wait(f"{self.name} to print every event", lambda: {line[0] for line in self.lines()} >= {id for id, _ in expected},
             lambda: f"{len(self.lines())} of {len(expected)}: {(self.output / 'stderr').read_text()[-2000:]}")
        if self.forged:
            wait(f"{self.name} to refuse both forged records", lambda: (self.output / "stderr").read_text().count("not from SIPSIM") == 2)
        lines = self.lines()
        if len(lines) != len(expected):
            twice = [" ".join(line) for line in lines if lines.count(line) > 1 or line[0] not in {id for id, _ in expected}]
            sys.exit(f"{self.name} printed {len(lines)} events for {len(expected)}, among them {twice}. {(self.output / 'stderr').read_text()[-2000:]}")
        calls, seen = collections.defaultdict(list), collections.defaultdict(list)
        for id, call in expected:
            calls[call].append(id)
        for id, _, call in lines:
            seen[call].append(id)
        calls.pop("-"), seen.pop("-")  # Text messages belong to no call.
        if calls != seen:
            sys.exit(f"{self.name}: not in order: {[call for call in calls if calls[call] != seen[call]]}")
        print(f"{self.name}: each once, in order{', and nothing forged' if self.forged else ''}", flush=True)


def start_consumers(language, work, brokers, processes):
    commands = {
        "python": lambda name: [sys.executable, f"examples/python/{name}.py"],
        "node": lambda name: ["scripts/node", "examples/node", f"examples/node/{name}.js"],
        "java": lambda name: ["scripts/java-examples", {"kafka": "KafkaExample", "rabbitmq": "RabbitMqExample"}[name]],
    }
    if language == "java":
        subprocess.run([ROOT / "scripts/java-examples"], check=True)
    if language == "node":
        subprocess.run([ROOT / "scripts/node", "examples/node", "-e", ""], check=True)
    kafka = {"KAFKA": brokers["KAFKA"], "SECRET_FILE": str(work / "secret")}
    yield Consumer(f"{language} kafka", commands[language]("kafka"), {**kafka, "GROUP": f"{language}-structured",
                   "TOPICS": ",".join(f"sipsim.{group}" for group in GROUPS)}, work, processes, forged=False)
    yield Consumer(f"{language} kafka in binary mode", commands[language]("kafka"), {**kafka, "GROUP": f"{language}-binary", "TOPICS": "binary"},
                   work, processes, forged=True)
    yield Consumer(f"{language} rabbitmq", commands[language]("rabbitmq"), {"RABBITMQ": brokers["RABBITMQ"], "QUEUE": f"examples.{language}",
                   "BINDINGS": ",".join(f"sipsim.{group}" for group in GROUPS)}, work, processes, forged=False)


def waiting(brokers, language):
    return any(queue["name"] == f"examples.{language}" and queue.get("consumers") for queue in management(brokers, "GET", "/api/queues"))


def wait(what, condition, found=lambda: ""):
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {LIMIT} s in vain for {what}. {found()}")
        time.sleep(0.1)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


main()
