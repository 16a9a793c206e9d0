"""Rules, dashboard, runbook and documents against the relay at work: tests/tools/watch.py PROGRAM, called by scripts/check-watch.

Every expression parses, names metrics that the relay has, and is answered by a real Prometheus that scrapes it; every alert has its entry in the runbook
and every entry its alert; docs/metrics.md has every metric; docs/logs.md every field of the log; the runbook's commands are commands.
"""
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request

import promql_parser
import yaml

from status_page import Relay, free_port, wait

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Empty on a relay that is well, or has no such thing: a query for it must parse and be answered, and may have no result.
MAY_BE_EMPTY = ("topic_held", "topic_stuck", "certificate_expiry_timestamp_seconds", "deriv(", "ALERTS", "changes(", "clock_skew", "secret_last_used")
PROMETHEUS_OWN = {"up", "ALERTS"}
VARIABLES = {"$__rate_interval": "5s", "$job": ".+", "$instance": ".+", "$output": ".+"}
problems = []


def problem(text):
    problems.append(text)
    print(f"  {text}")


def metrics_in(node, found):
    """The names of all metrics in a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        found.add(node.name)
    elif isinstance(node, promql_parser.MatrixSelector):
        metrics_in(node.vector_selector, found)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            metrics_in(argument, found)
    else:
        for part in ("expr", "lhs", "rhs", "param"):
            child = getattr(node, part, None)
            if child is not None:
                metrics_in(child, found)
    return found


def families(page):
    """Every name that a rule may use: of histograms their parts."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M):
        names |= {name + part for part in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    # These have no series, and so no type, until there is something to tell.
    stuck = {f"sipsim_relay_topic_stuck_{what}" for what in ("sequence", "bytes", "age_seconds")}
    return names | stuck | {"sipsim_relay_certificate_expiry_timestamp_seconds", "sipsim_relay_topic_held"}


def check_expression(where, expression, known):
    try:
        parsed = promql_parser.parse(expression)
    except ValueError as error:
        return problem(f"{where}: it does not parse: {error}: {expression}")
    found = metrics_in(parsed, set())
    if not found and "vector(" not in expression and "hour()" not in expression:
        problem(f"{where}: no metric was found in {expression}")
    for name in found - known:
        problem(f"{where}: there is no metric {name}")


def panels_of(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def filled_in(expression):
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def expressions_of(dashboard):
    for panel in panels_of(dashboard):
        for target in panel.get("targets", []):
            yield f"dashboard, {panel['title']!r}", filled_in(target["expr"])
    for annotation in dashboard["annotations"]["list"]:
        yield f"dashboard, annotation {annotation['name']!r}", filled_in(annotation["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            query = filled_in(variable["query"]["query"])
            yield f"dashboard, variable {variable['name']!r}", query.removeprefix("label_values(").rpartition(",")[0]


def check_layout(dashboard):
    taken, ids = {}, set()
    for panel in panels_of(dashboard):
        if panel["id"] in ids:
            problem(f"dashboard: two panels have the id {panel['id']}")
        ids.add(panel["id"])
        if panel["type"] != "row" and not panel.get("description"):
            problem(f"dashboard, {panel['title']!r}: no description")
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                if other != panel["title"] or x >= 24:
                    problem(f"dashboard: {panel['title']!r} and {other!r} overlap at {x}, {y}, or it is wider than 24")
                    return


def check_runbook(alerts):
    text = (ROOT / "docs/runbook.md").read_text()
    entries = dict(re.findall(r"^## (Sipsim\w+)$(.*?)(?=^## |\Z)", text, re.M | re.S))
    for name in sorted(set(alerts) ^ set(entries)):
        problem(f"runbook: {name} is {'an alert without an entry' if name in alerts else 'an entry without an alert'}")
    for name, entry in entries.items():
        for part in ("**Means**", "**SIPSIM sees**", "**Type**"):
            if part not in entry:
                problem(f"runbook, {name}: no {part}")
    for name, rules in alerts.items():
        for rule in rules:
            if rule["annotations"].get("runbook") != f"docs/runbook.md#{name.lower()}":
                problem(f"rules, {name}: its annotation `runbook` is {rule['annotations'].get('runbook')}")
            if rule["labels"].get("severity") not in ("critical", "warning"):
                problem(f"rules, {name}: severity {rule['labels'].get('severity')}")
    return text


def check_commands(program, document):
    """Exit code 2 is wrong usage. In an empty folder, where none of them can do anything."""
    commands = set(re.findall(r"^(?:kubectl exec POD -- )?(sipsim-relay [^`\n]*)$", document, re.M)) | set(re.findall(r"`(sipsim-relay [^`]*)`", document))
    if len(commands) < 10:
        problem(f"runbook: only {len(commands)} commands were found")
    has_live = "--live" in subprocess.run([program, "check", "--help"], capture_output=True, text=True, timeout=30).stdout
    with tempfile.TemporaryDirectory() as folder:
        for command in sorted(commands):
            for single in re.split(r" && |; ", re.sub(r"\s+#.*| >\S+", "", command)):
                arguments = shlex.split(single)[1:]
                if "…" in single or arguments[0] in ("simulate", "drain"):
                    arguments = [arguments[0], "--help"] if "…" not in single else ["--help"]
                if not has_live:  # The contract has it, this version of the program not yet.
                    arguments = [argument for argument in arguments if argument != "--live"]
                environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
                pathlib.Path(folder, "copy.toml").write_text("")
                done = subprocess.run([program, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
                if done.returncode == 2 and ("unexpected" in done.stderr or "required" in done.stderr or "unrecognized" in done.stderr or "invalid value" in done.stderr):
                    problem(f"runbook: {single}: {done.stderr.splitlines()[0]}")


def check_metrics_document(names):
    text = (ROOT / "docs/metrics.md").read_text()
    rows = set(re.findall(r"^\| `(sipsim_relay_\w+)` \|", text, re.M))
    # No metric but the parts of histograms ends so.
    exist = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names if name.startswith("sipsim_relay_")}
    for name in sorted(rows ^ exist):
        problem(f"docs/metrics.md: {name} {'has no row' if name in exist else 'does not exist'}")


def check_log_fields(log):
    text = (ROOT / "docs/logs.md").read_text()
    documented = {field for row in re.findall(r"^\| (`[^|]*) \|", text, re.M) for field in re.findall(r"`([^`]+)`", row)}
    used = {"timestamp", "level", "message"}
    for file in (ROOT / "src").rglob("*.rs"):
        source = re.split(r"#\[cfg\(test\)\]\s+mod \w+ \{", file.read_text())[0]
        for fields in re.findall(r"\b(?:trace|debug|info|warn|error)!\(\s*([^\"]*)\"", source):
            for field in filter(None, (part.strip() for part in fields.split(","))):
                used.add(field.partition("=")[0].strip().lstrip("%?"))
    for field in sorted(used ^ documented):
        problem(f"docs/logs.md: the field {field} {'is not there' if field in used else 'is never logged'}")
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    if len(lines) < 5:
        problem(f"the relay logged {len(lines)} lines")
    for line in lines:
        if unknown := set(line) - documented:
            problem(f"docs/logs.md: the log has {unknown}: {line}")


class Prometheus:
    def __init__(self, folder, target):
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(ROOT / "deploy/prometheus/rules.yml")],
                  "scrape_configs": [{"job_name": "sipsim-relay", "static_configs": [{"targets": [target]}]}]}
        pathlib.Path(folder, "prometheus.yml").write_text(yaml.safe_dump(config))
        self.port = free_port()
        arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{self.port}"]
        with open(f"{folder}/log", "w") as log:
            self.process = subprocess.Popen(["prometheus", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ask(self, path, **parameters):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        return self.ask("/api/v1/query", query=expression)["result"]

    def close(self):
        self.process.kill()
        self.process.wait()


def ask_prometheus(prometheus, expressions):
    wait("Prometheus to have scraped the relay a few times", 30, lambda: (found := prometheus.query('count_over_time(up[1m])')) and float(found[0]["value"][1]) >= 5)
    wait("the settings of the rules to be recorded", 30, lambda: prometheus.query("sipsim_relay:silence_max_seconds"))
    for where, expression in expressions:
        try:
            result = prometheus.query(expression)
        except urllib.error.HTTPError as error:
            problem(f"{where}: Prometheus: {error.read().decode()}")
            continue
        if not result and not any(word in expression for word in MAY_BE_EMPTY):
            problem(f"{where}: Prometheus has nothing for {expression}")
    for group in prometheus.ask("/api/v1/rules")["groups"]:
        for rule in group["rules"]:
            if rule["health"] == "err":
                problem(f"rules, {rule['name']}: {rule.get('lastError')}")


def main():
    program = os.path.abspath(sys.argv[1])
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    alerts, recorded = {}, set()
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        if "alert" in rule:
            alerts.setdefault(rule["alert"], []).append(rule)
        else:
            recorded.add(rule["record"])
    # One output that takes everything, one whose broker is away.
    relay = Relay(program, '[outputs.console]\n[outputs.kafka]\nbrokers = "127.0.0.1:1"\n[log]\nformat = "json"\nlevel = "debug"\n')
    folder = tempfile.TemporaryDirectory(prefix="sipsim-relay-prometheus-")
    prometheus = Prometheus(folder.name, f"127.0.0.1:{relay.admin}")
    try:
        relay.play(["incoming_call_start", "sms", "tags", "summary"])
        relay.play(["test"], status=401, secret="another secret, which nobody here has")
        page = relay.get("/metrics")
        known = families(page) | PROMETHEUS_OWN
        for name, of_name in alerts.items():
            for rule in of_name:
                check_expression(f"rules, {name}", rule["expr"], known | recorded)
        for rule in (rule for group in rules["groups"] for rule in group["rules"] if "record" in rule):
            check_expression(f"rules, {rule['record']}", rule["expr"], known | recorded)
        expressions = list(expressions_of(dashboard))
        for where, expression in expressions:
            check_expression(where, expression, known)
        check_layout(dashboard)
        check_commands(program, check_runbook(alerts))
        check_metrics_document(known)
        ask_prometheus(prometheus, expressions)
        log = (relay.folder / "log").read_text()
        check_log_fields(log)
    finally:
        prometheus.close()
        relay.close()
        folder.cleanup()
    print(f"{sum(map(len, alerts.values()))} alerts, {len(expressions)} expressions of the dashboard, {len(known)} names of metrics: {len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
