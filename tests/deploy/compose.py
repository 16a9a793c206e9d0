"""compose.py   Every file that docker-compose.yml mounts is there (Docker would make an empty folder of it), both profiles have what they need, and no
relay waits for a broker."""

import pathlib
import sys
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parents[2]
problems = []
compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
services = compose["services"]
for name, service in services.items():
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("./") and not (ROOT / source).exists():
            problems.append(f"{name} mounts {source}, which does not exist")
        if not source.startswith("./") and source not in compose["volumes"]:
            problems.append(f"{name} mounts the volume {source}, which nobody declares")
    if name.startswith("relay") and "depends_on" in service:
        problems.append(f"{name} waits for {list(service['depends_on'])}: a relay accepts without a broker")
    if name.startswith("relay"):
        (file,) = (volume.split(":")[0] for volume in service["volumes"] if volume.endswith("relay.toml:ro"))
        if name not in tomllib.loads((ROOT / file).read_text())["admin"]["hosts"]:
            problems.append(f"{name}: {file} does not let Prometheus ask by the service's name (admin.hosts)")
    for port in service.get("ports", []):
        if not port.startswith("127.0.0.1:"):
            problems.append(f"{name}: port {port} is open beyond loopback")
    if ":" not in service["image"] and service["image"] != "sipsim-relay" or service["image"].endswith(":latest"):
        problems.append(f"{name}: the image {service['image']} has no version")
for wanted in ["relay", "kafka", "simulator", "prometheus", "grafana"]:
    if wanted not in services or services[wanted].get("profiles"):
        problems.append(f"`docker compose up` does not start {wanted}")
for wanted in ["relay-rabbitmq", "rabbitmq", "simulator-rabbitmq"]:
    if services.get(wanted, {}).get("profiles") != ["rabbitmq"]:
        problems.append(f"the profile rabbitmq does not start {wanted}")
for one in problems:
    print(one)
sys.exit(1 if problems else 0)
