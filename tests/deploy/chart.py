"""Renders the chart with Helm 4 over a matrix of values, and checks each result: against Kubernetes' own schemas of the oldest and newest supported
version, against what every object of ours must have, and its relay.toml with the relay's own `check`.

chart.py PROGRAM RENDERED-FOLDER   writes each result to the folder, for further tools. `chart.py --write-kubernetes-yaml` makes deploy/kubernetes.yaml.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

import helm_python
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/sipsim-relay"
VALUES = ROOT / "tests/deploy/values"
OLDEST, NEWEST = "1.29.1", "1.37.0"
PLAIN = ROOT / "deploy/kubernetes.yaml"
PLAIN_HEAD = """\
# sipsim-relay for those without Helm, rendered from deploy/helm/sipsim-relay (tests/deploy/chart.py --write-kubernetes-yaml; a test compares).
# Fill in KAFKA-BOOTSTRAP, the image, and the Secret `sipsim-signing-secret`, of which each key is one accepted secret. After a change of relay.toml:
# kubectl rollout restart statefulset sipsim-relay
"""
# Kinds that are not Kubernetes' own, so that its schemas do not know them; tests/kubernetes applies them to a server that does.
FOREIGN = {"HTTPRoute", "PodMonitor", "PrometheusRule"}
problems = []


def problem(case, text):
    problems.append(f"{case}: {text}")


def render(values, name="sipsim-relay"):
    with helm_python.Chart.load(CHART) as chart:
        return chart.render(values=values, name=name, namespace="telephony")


def objects(rendered):
    return [one for path, text in rendered.items() if path.endswith(".yaml") for one in yaml.safe_load_all(text) if one]


def without_helm():
    rendered = render(yaml.safe_load((VALUES / "kubernetes.yaml").read_text()))
    parts = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml") and "/tests/" not in path and text.strip()]
    lines = "\n---\n".join(part.strip().removeprefix("---").strip() for part in parts).splitlines()
    # What only Helm's own bookkeeping wants, and the namespace, which is whoever applies it to say.
    kept = [line.rstrip() for line in lines if not re.match(r" *(helm.sh/chart|app.kubernetes.io/managed-by|namespace): ", line)]
    return PLAIN_HEAD + "---\n" + "\n".join(kept) + "\n"


def pod_of(one):
    spec = one["spec"]
    if one["kind"] == "Pod":
        return spec
    if one["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return spec["template"]["spec"] if "template" in spec else None


def check_pod(case, kind, pod):
    def expect(truth, what):
        if not truth:
            problem(case, f"{kind}: {what}")

    expect(pod.get("automountServiceAccountToken") is False, "a service account's token is mounted")
    expect(pod.get("enableServiceLinks") is False, "enableServiceLinks is not false")
    security = pod.get("securityContext", {})
    expect(security.get("runAsNonRoot") is True and security.get("runAsUser", 0) >= 10000, "may run as root or as a low uid")
    expect(security.get("seccompProfile", {}).get("type") == "RuntimeDefault", "no seccomp profile")
    for container in pod["containers"]:
        own = container.get("securityContext", {})
        expect(own.get("readOnlyRootFilesystem") is True, "the root file system can be written")
        expect(own.get("allowPrivilegeEscalation") is False, "may gain privileges")
        expect(own.get("capabilities", {}).get("drop") == ["ALL"], "keeps capabilities")
        expect("requests" in container["resources"] and "memory" in container["resources"].get("limits", {}), "no resources")
        expect(not any("subPath" in mount for mount in container["volumeMounts"]), "a subPath, which never reloads")
        expect("lifecycle" not in container, "a preStop hook, which shutdown.delay is for")
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        given = {volume["name"] for volume in pod.get("volumes", [])} | ({"journal"} if kind == "StatefulSet" else set())
        expect(mounts == given, f"volumes {given} and mounts {mounts} differ")
    for volume in pod.get("volumes", []):
        if "secret" in volume:
            expect(volume["secret"].get("defaultMode") == 0o440, f"volume {volume['name']} is readable by all")


def check_relay(case, found, folder, program):
    """The objects beside each other: what the configuration says is what Kubernetes is told."""

    def expect(truth, what):
        if not truth:
            problem(case, what)

    def of(kind):
        return [one for one in found if one["kind"] == kind]

    (relay,) = of("StatefulSet")
    (settings,) = (one for one in of("ConfigMap") if "relay.toml" in one["data"])
    text = settings["data"]["relay.toml"]
    config = tomllib.loads(text)
    spec = relay["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    expect(spec["podManagementPolicy"] == "Parallel", "not Parallel")
    (claim,) = spec["volumeClaimTemplates"]
    expect(claim.get("apiVersion") == "v1" and claim.get("kind") == "PersistentVolumeClaim", "the claim template is incomplete")
    expect(set(spec["persistentVolumeClaimRetentionPolicy"]) == {"whenDeleted", "whenScaled"}, "no retention policy")
    selector = spec["selector"]["matchLabels"]
    for one in found:
        template = one["spec"]["template"] if one["kind"] in ("StatefulSet", "Job") else None
        labels = template["metadata"]["labels"] if template else {}
        matches = selector.items() <= labels.items()
        if template and matches != (one["kind"] == "StatefulSet"):
            problem(case, f"{one['kind']} {one['metadata']['name']}: the Service's selector takes its pods" if matches else "the selector misses the pods")
        if one["metadata"].get("annotations", {}).get("helm.sh/hook", "test") != "test":
            problem(case, f"{one['kind']} is a hook")
    # Grace: both parts, the relay's own 2 s, and some to spare.
    seconds = sum(float(n) * {"ms": 0.001, "s": 1, "m": 60}[u] for n, u in (re.match(r"([\d.]+) *(\w+)", t).groups() for t in config["shutdown"].values()))
    grace = pod["terminationGracePeriodSeconds"]
    expect(seconds + 2 < grace <= seconds + 7, f"grace period {grace} s for {seconds} s of shutdown")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    expect(config["ingress"]["listen"].endswith(f":{ports['webhooks']}"), "the webhooks' port is another than ingress.listen")
    expect(config["admin"]["listen"].endswith(f":{ports['admin']}"), "the admin port is another than admin.listen")
    full, pods = relay["metadata"]["name"], range(spec["replicas"])
    services = [full, f"{full}-headless", *(f"{full}-{number}.{full}-headless" for number in pods)]
    forms = {f"{service}{rest}" for service in services for rest in ("", ".telephony", ".telephony.svc", ".telephony.svc.cluster.local")}
    expect(forms <= set(config["admin"]["hosts"]), f"admin.hosts lacks {forms - set(config['admin']['hosts'])}")
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    expect([(p["path"], p["port"]) for p in probes.values()] == [("/startupz", "admin"), ("/livez", "admin"), ("/readyz", "admin")], "probes")
    (mount,) = (m["mountPath"] for m in container["volumeMounts"] if m["name"] == "journal")
    expect(pathlib.PurePath(config["journal"]["path"]).parent.parent.is_relative_to(mount), "the journal has no folder of its own below the mount")
    # Ways in: the accounts' paths exactly, and never the admin port.
    paths = sorted(account["path"] for account in config["accounts"].values())
    for route in of("HTTPRoute"):
        matches = [match for rule in route["spec"]["rules"] for match in rule["matches"]]
        expect(sorted(match["path"]["value"] for match in matches) == paths, "HTTPRoute: other paths than the accounts'")
        expect(all(match["path"]["type"] == "Exact" for match in matches), "HTTPRoute: not Exact")
    for ingress in of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            expect(sorted(p["path"] for p in rule["http"]["paths"]) == paths, "Ingress: other paths than the accounts'")
            expect(all(p["pathType"] == "Exact" for p in rule["http"]["paths"]), "Ingress: not Exact")
    for service in of("Service"):
        expect([port["targetPort"] for port in service["spec"]["ports"]] == ["webhooks"], "a Service leads to another port than the webhooks'")
    for budget in of("PodDisruptionBudget"):
        expect(budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow" and budget["spec"]["maxUnavailable"] == 1, "the budget")
    for job in of("Job"):
        volume = next(v for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "journal")
        name = volume["persistentVolumeClaim"]["claimName"]
        number = int(name.rsplit("-", 1)[1])
        expect(name == f"journal-{relay['metadata']['name']}-{number}" and number >= spec["replicas"], f"the drain takes the claim {name}")
    # The relay itself reads what the pods would read, with its files in a folder of ours.
    for account in config["accounts"]:
        write(folder, f"accounts/{account}/sipsim", "0123456789abcdef0123456789abcdef")
    for mounted in set(re.findall(r"/etc/sipsim-relay/(secrets/[^\"]+)", text)):
        write(folder, mounted, "0123456789abcdef")
    file = write(folder, "relay.toml", text.replace("/etc/sipsim-relay/", f"{folder}/").replace("/var/lib/sipsim-relay", f"{folder}/data"))
    variables = {e["name"]: e.get("value", "0123456789abcdef0123456789abcdef") for e in container.get("env", [])}
    ran = subprocess.run([program, "check", "--config", file], env=variables, capture_output=True, text=True, timeout=60, cwd=folder)
    expect(ran.returncode == 0, f"sipsim-relay check: exit code {ran.returncode}: {ran.stdout}{ran.stderr}")
    return spec["template"]["metadata"]["annotations"]["sipsim-relay/config-sha256"]


def write(folder, name, text):
    file = pathlib.Path(folder, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o600)
    return str(file)


def check_case(case, values, program, out):
    try:
        rendered = render(values)
    except helm_python.HelmError as error:
        problem(case, f"does not render: {error}")
        return None
    found = objects(rendered)
    (out / f"{case}.yaml").write_text("".join(f"---\n{yaml.safe_dump(one)}" for one in found))
    for one in found:
        if one["kind"] not in FOREIGN:
            for version in (OLDEST, NEWEST):
                try:
                    kubernetes_validate.validate(one, version, strict=True)
                except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                    problem(case, f"{one['kind']} in Kubernetes {version}: {error}")
        if len(one["metadata"]["name"]) > 52:
            problem(case, f"{one['kind']}: the name {one['metadata']['name']} leaves no room for what controllers add")
        if one["kind"] in ("StatefulSet", "Job", "CronJob", "Pod"):
            check_pod(case, one["kind"], pod_of(one))
    with tempfile.TemporaryDirectory() as folder:
        return check_relay(case, found, folder, program)


# Values that must be refused, and what the message has to name.
REFUSED = [
    ({"replcas": 3}, "replcas"),
    ({"config": {"journl": {}}}, "journl"),
    ({"config": {"outputs": {"kafka": {"borkers": "k:9092"}}}}, "borkers"),
    ({"config": {"shutdown": {"delay": "5 seconds"}}}, "delay"),
    ({"persistence": {"accessModes": ["ReadWriteMany"]}}, "accessModes"),
    ({"podSecurityContext": {"runAsUser": 0}}, "runAsUser"),
    ({"image": {"digest": "latest"}}, "digest"),
    ({"testEvent": {"enabled": True}}, "testEvent.url is missing"),
    ({"testEvent": {"enabled": True, "url": "https://e/x", "account": "sales"}}, "testEvent.account"),
    ({"config": {"accounts": {"sales": {"path": "/s"}}}}, "accountSecrets.sales is missing"),
    ({"config": {"accounts": {"sales": {}}}, "accountSecrets": {"sales": {"secretName": "s"}}}, "config.accounts.sales.path is missing"),
    ({"accountSecrets": {"slaes": {"secretName": "s"}}}, "accountSecrets.slaes"),
    ({"config": {"instance": "one"}}, "config.instance"),
    ({"config": {"admin": {"listen": "127.0.0.1:8081"}}}, "config.admin.listen"),
    ({"drain": {"replicas": [1]}}, "replica 1 still runs"),
    ({"persistence": {"size": "8Gi"}}, "persistence.size is 8Gi"),
    ({"prometheusRule": {"enabled": True, "silenceMax": "0s"}}, "silenceMax"),
    ({"config": None}, "config"),
    ({"config": {"outputs": {"amqp": {"urls": ["amqp://a/"]}}}}, "config.outputs.amqp.type is missing"),
    ({"config": {"outputs": {"kafka": {"security": {"password_file": "/etc/sipsim-relay/secrets/kfka/password"}}}}, "mountedSecrets": {"kafka": "k"}}, "mountedSecrets.kfka is missing"),
    ({"config": {"outputs": {"kafka": {"urls": ["amqp://a/"]}}}}, "config.outputs.kafka.urls"),
    ({"config": {"outputs": {"bus": {"type": "rabbitmq", "brokers": "k:9092"}}}}, "config.outputs.bus.brokers"),
    ({"config": {"outputs": {"kafka": {"security": {"protocol": "SASL"}}}}}, "protocol"),
    ({"config": {"accounts": {"a": {"path": "/x"}, "b": {"path": "/x"}}}, "accountSecrets": {"a": {"secretName": "s"}, "b": {"secretName": "s"}}}, "config.accounts.b.path"),
    ({"config": {"admin": {"listen": "0.0.0.0:8080"}}}, "config.admin.listen"),
    ({"accountSecrets": None}, "accountSecrets.default is missing"),
    ({"httpRoute": {"hostnames": ["relay.example.com"]}}, "httpRoute.parentRefs is missing"),
    ({"ingress": {"className": "nginx"}}, "ingress.hosts is missing"),
]


def check_refused():
    for values, named in REFUSED:
        try:
            render(values)
            problem("refused", f"{json.dumps(values)} renders, and should be refused with a word about {named}")
        except helm_python.HelmError as error:
            # Of an `anyOf` Helm would name every branch, and that null was wanted helps nobody.
            if named not in str(error) or "want null" in str(error):
                problem("refused", f"{json.dumps(values)}: the message does not name {named}: {error}")


def check_rules():
    """With the defaults the rules are deploy/prometheus/rules.yml; what one sets takes effect wherever it counts, and Prometheus takes the result."""
    original = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())

    def expressions(groups):
        return {(rule.get("record", rule.get("alert")), str(rule.get("labels"))): rule["expr"] for group in groups for rule in group["rules"]}

    def check(values, hours, silence, delivery):
        (rule,) = (one for one in objects(render({"prometheusRule": {"enabled": True, **values}})) if one["kind"] == "PrometheusRule")
        with tempfile.TemporaryDirectory() as folder:
            file = write(folder, "rules.yml", yaml.safe_dump(rule["spec"]))
            ran = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60)
        if ran.returncode != 0:
            problem("rules", f"{values}: promtool: {ran.stdout}{ran.stderr}")
        wanted = expressions(original["groups"])
        for key in wanted:
            if key[0] in ("sipsim_relay:calls_expected_throughout", "sipsim_relay:events_within_silence_max", "SipsimRelaySilence"):
                wanted[key] = wanted[key].replace("[1h]", f"[{silence}s]")
        own = {"calls_expected": hours, "silence_max_seconds": f"vector({silence})", "delivery_max_seconds": f"vector({delivery})"}
        wanted |= {(f"sipsim_relay:{name}", "None"): expression for name, expression in own.items()}
        found = expressions(rule["spec"]["groups"])
        for key in wanted.keys() | found.keys():
            if found.get(key) != wanted.get(key):
                problem("rules", f"{values}: {key[0]} is {found.get(key)}, and should be {wanted.get(key)}")

    settings = {rule["record"]: rule["expr"] for rule in original["groups"][0]["rules"]}
    check({}, settings["sipsim_relay:calls_expected"], 3600, 300)
    check({"callsExpected": "vector(1)", "silenceMax": "1.5h", "deliveryMax": "90s"}, "vector(1)", 5400, 90)


def check_notes():
    """What Helm accepts, and is nevertheless not done yet."""
    for values, said in [
        ({}, ["NO OUTPUT IS CONFIGURED", "THE IMAGE HAS NO REGISTRY", "Nothing routes to it yet", "create secret generic sipsim-signing-secret", "journal-sipsim-relay-1"]),
        ({"config": {"outputs": {"kafka": {"mode": "binary"}}}}, ["OUTPUT kafka HAS NO ADDRESS", "config.outputs.kafka.brokers"]),
        ({"config": {"outputs": {"bus": {"type": "rabbitmq"}}}}, ["OUTPUT bus HAS NO ADDRESS", "config.outputs.bus.urls"]),
    ]:
        (notes,) = (text for path, text in render(values).items() if path.endswith("NOTES.txt"))
        for words in said:
            if words not in notes:
                problem("notes", f"{json.dumps(values)}: they do not say {words!r}:\n{notes}")


def keys_of(table, path=""):
    for key, value in table.items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{path}{key}.")


def check_schema():
    """The schema of `config` has relay.toml's keys, every one, and no other."""
    text = (ROOT / "relay.toml").read_text()
    manual = tomllib.loads("\n".join(line[1:] if re.match(r"#[^ ]", line) else line for line in text.splitlines()))
    schema = json.loads((CHART / "values.schema.json").read_text())

    def schema_keys(node, path=""):
        for key, inner in node.get("properties", {}).items():
            yield f"{path}{key}"
            yield from schema_keys(inner, f"{path}{key}.")
        if isinstance(node.get("additionalProperties"), dict):
            yield from schema_keys(node["additionalProperties"], f"{path}*.")

    def general(key):  # accounts.default.path and accounts.*.path are the same key.
        key = re.sub(r"^(accounts|outputs)\.[^.]+", r"\1.*", key)
        return re.sub(r"\.(topics|routing_keys|properties)\..*", r".\1", key)

    shown = {general(key) for key in keys_of(manual)} - {"accounts.*", "outputs.*"}
    known = set(schema_keys(schema["properties"]["config"]))
    for key in sorted(shown - known):
        problem("values.schema.json", f"config.{key} is a key of relay.toml that the schema refuses")
    for key in sorted(known - shown):
        problem("values.schema.json", f"config.{key} is no key of relay.toml")
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    for key in sorted((set(schema["properties"]) ^ set(defaults)) - {"global"}):
        problem("values.schema.json", f"{key} is in values.yaml or the schema, not in both")


def check_copies():
    for copy, original in [("rules.yml", "prometheus/rules.yml"), ("dashboard.json", "grafana/dashboard.json")]:
        if (CHART / "files" / copy).read_bytes() != (ROOT / "deploy" / original).read_bytes():
            problem(f"deploy/helm/sipsim-relay/files/{copy}", f"differs from deploy/{original}: copy it")
    if not PLAIN.exists() or PLAIN.read_text() != without_helm():
        problem("deploy/kubernetes.yaml", "is not what the chart renders: tests/deploy/chart.py --write-kubernetes-yaml")
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    if yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] != version:
        problem("Chart.yaml", f"appVersion is not Cargo.toml's {version}")
    report = helm_python.lint(CHART, strict=True)
    for message in report["messages"]:
        if message["severity"] >= 2:
            problem("helm lint", f"{message['path']}: {message['error']}")


def main():
    if sys.argv[1:] == ["--write-kubernetes-yaml"]:
        PLAIN.write_text(without_helm())
        return 0
    program, out = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2])
    cases = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(VALUES.glob("*.yaml"))}
    cases["defaults"] = {}
    cases["console"] = {"config": {"outputs": {"console": {}}}}
    cases["kafka-alone"] = {"config": {"outputs": {"kafka": {"brokers": "kafka:9092"}}}}
    cases["rabbitmq-alone"] = {"config": {"outputs": {"rabbitmq": {}}}, "replicas": 5}
    hashes = [check_case(case, values, program, out) for case, values in cases.items()]
    changed = check_case("kafka-alone-changed", {"config": {"outputs": {"kafka": {"brokers": "kafka:9093"}}}}, program, out)
    if changed == hashes[list(cases).index("kafka-alone")]:
        problem("hash", "a changed configuration does not change the pods")
    scaled = check_case("kafka-alone-scaled", cases["kafka-alone"] | {"replicas": 3}, program, out)
    if scaled != hashes[list(cases).index("kafka-alone")]:
        problem("hash", "more replicas replace the pods that there are")
    for check in (check_refused, check_notes, check_rules, check_schema, check_copies):
        try:
            check()
        except helm_python.HelmError as error:
            problem(check.__name__, f"does not render: {error}")
    for one in problems:
        print(one)
    print(f"The chart: {len(cases) + 2} sets of values rendered, {len(REFUSED)} refused, {len(problems)} problems.")
    return 1 if problems else 0


sys.exit(main())
