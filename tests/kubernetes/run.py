"""run.py HOME   HOME is the folder that tests/kubernetes/build makes. Starts a Kubernetes of its own on loopback (kwok plays the kubelets, so that no
container runs), installs the chart with Helm 3 once for each set of values in tests/deploy/values into a namespace that enforces the `restricted`
standard, and sees: every pod admitted, scheduled, with its volume; no difference to what is wanted; an upgrade that changes nothing replace nothing; a
changed configuration replace every pod; scaling, and the drain's Job; the claims that remain after uninstalling. KEEP=1 leaves the server running.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/sipsim-relay"
VALUES = ROOT / "tests/deploy/values"
HOME = pathlib.Path(sys.argv[1])
NODES = 3
VOLUMES = 40


class Failed(Exception):
    pass


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Cluster:
    def __init__(self, folder):
        self.folder = folder
        self.running = []
        self.config = folder / "kubeconfig"

    def start(self):
        etcd, peer, api = port(), port(), port()
        self.spawn("etcd", f"--data-dir={self.folder}/etcd", f"--listen-client-urls=http://127.0.0.1:{etcd}", f"--advertise-client-urls=http://127.0.0.1:{etcd}",
                   f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}", f"--initial-cluster=default=http://127.0.0.1:{peer}",
                   "--unsafe-no-fsync")
        subprocess.run(["openssl", "genrsa", "-out", "sa.key", "2048"], cwd=self.folder, check=True, capture_output=True)
        subprocess.run(["openssl", "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"], cwd=self.folder, check=True, capture_output=True)
        (self.folder / "tokens.csv").write_text("check-kubernetes,admin,1,system:masters\n")
        server = {"server": f"https://127.0.0.1:{api}", "insecure-skip-tls-verify": True}
        self.config.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "it", "clusters": [{"name": "it", "cluster": server}],
            "users": [{"name": "it", "user": {"token": "check-kubernetes"}}], "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}]}))
        self.config.chmod(0o600)
        self.spawn("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{etcd}", f"--secure-port={api}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
                   f"--cert-dir={self.folder}/certs", "--service-account-key-file=sa.pub", "--service-account-signing-key-file=sa.key",
                   "--service-account-issuer=https://kubernetes.default.svc", "--token-auth-file=tokens.csv", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16")
        wait("the API server", lambda: self.kubectl("get", "--raw", "/readyz", ok=False).returncode == 0, 180)
        # kwok's nodes are heard of less often than the controllers expect by default, who would take their pods for not ready for the rest of the run.
        self.spawn("kube-controller-manager", "--kubeconfig=kubeconfig", "--service-account-private-key-file=sa.key", "--root-ca-file=certs/apiserver.crt", "--leader-elect=false", "--secure-port=0",
                   "--node-monitor-grace-period=24h")
        self.spawn("kube-scheduler", "--kubeconfig=kubeconfig", "--leader-elect=false", "--secure-port=0")
        for crd in sorted((HOME / "crd").glob("*.yaml")):
            self.kubectl("apply", "--server-side", "-f", str(crd))
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        self.furnish()
        stages = [str(f) for kind in ("node/fast", "pod/fast") for f in sorted((HOME / "stage" / kind).glob("*.yaml")) if f.name != "kustomization.yaml"]
        stages.append(str(ROOT / "tests/kubernetes/stage-helm-test.yaml"))
        self.spawn("kwok", "--kubeconfig=kubeconfig", "--manage-all-nodes", *[f"--config={stage}" for stage in stages])
        self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=60s")

    def spawn(self, name, *args):
        log = open(self.folder / f"{name}.log", "w")
        self.running.append((name, subprocess.Popen([HOME / "bin" / name, *args], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)))

    def furnish(self):
        """Nodes, volumes of both classes, and what the values name."""
        things = []
        for n in range(NODES):
            labels = {"kubernetes.io/hostname": f"node-{n}", "topology.kubernetes.io/zone": f"zone-{n}", "disk": "local"}
            things.append({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{n}", "labels": labels}})
        for n in range(VOLUMES):
            spec = {"capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce" if n % 4 == 0 else "ReadWriteOncePod"], "hostPath": {"path": f"/volumes/{n}"}, "persistentVolumeReclaimPolicy": "Retain"}
            if n % 4 == 0:
                spec["storageClassName"] = "local-path"
            things.append({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"volume-{n}"}, "spec": spec})
        things.append({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "important"}, "value": 1000})
        self.apply(things)

    def apply(self, things, *args):
        self.kubectl("apply", "-f", "-", *args, stdin=yaml.safe_dump_all(things))

    def kubectl(self, *args, stdin=None, ok=True):
        return self.run(["kubectl", "--kubeconfig", self.config, *args], stdin, ok)

    def helm(self, *args, stdin=None, ok=True):
        return self.run(["helm", "--kubeconfig", self.config, *args], stdin, ok)

    def run(self, command, stdin=None, ok=True):
        ran = subprocess.run([HOME / "bin" / command[0], *command[1:]], input=stdin or "", capture_output=True, text=True, timeout=300, env={"HOME": str(self.folder), "PATH": os.environ["PATH"]})
        if ok and ran.returncode != 0:
            raise Failed(f"{' '.join(map(str, command))}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran

    def get(self, namespace, kind, selector=None):
        extra = ["-l", selector] if selector else []
        return json.loads(self.kubectl("-n", namespace, "get", kind, "-o", "json", *extra).stdout)["items"]

    def stop(self):
        for _, one in reversed(self.running):
            one.terminate()
        for _, one in self.running:
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()


def wait(what, condition, limit=120):
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"waited {limit} s in vain for {what}")
        time.sleep(0.3)


def merge(base, more):
    return {**base, **{k: merge(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in more.items()}}


class Case:
    def __init__(self, cluster, name, values):
        self.cluster, self.name, self.values = cluster, name, values
        self.space = f"case-{name}"
        self.release = "sipsim-relay"
        self.full = values.get("fullnameOverride") or self.release
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        cluster.apply([
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.space, "labels": labels}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "telephony", "namespace": self.space}}])

    def helm(self, verb, more=None, *args):
        values = merge(self.values, more or {})
        ran = self.cluster.helm(verb, self.release, str(CHART), "-n", self.space, "-f", "-", *args, stdin=yaml.safe_dump(values))
        if "Warning" in ran.stderr:
            raise Failed(f"{self.name}: helm {verb}: {ran.stderr}")
        return ran.stdout

    def pods(self):
        return {one["metadata"]["name"]: one for one in self.cluster.get(self.space, "pods", "app.kubernetes.io/component=relay") if "deletionTimestamp" not in one["metadata"]}

    def claims(self):
        return {one["metadata"]["name"]: one["status"].get("phase") for one in self.cluster.get(self.space, "pvc")}

    def await_pods(self, count, unlike=()):
        def there():
            pods = self.pods()
            ready = [p for p in pods.values() if any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))]
            return sorted(pods) == [f"{self.full}-{n}" for n in range(count)] and len(ready) == count and not {p["metadata"]["uid"] for p in pods.values()} & set(unlike)

        wait(f"{self.name}: {count} pods, admitted, scheduled and ready (see: kubectl get events)", there)
        for pod in self.pods().values():
            claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
            if claims != [f"journal-{pod['metadata']['name']}"] or self.claims()[claims[0]] != "Bound" or not pod["spec"].get("nodeName"):
                raise Failed(f"{self.name}: {pod['metadata']['name']} has no bound claim of its own: {claims} {self.claims()}")
        return {p["metadata"]["uid"] for p in self.pods().values()}

    def numbers_are_whole(self):
        """Helm 3 reads every number as a float, and the relay takes 2048, not 2048.0."""
        text = self.cluster.get(self.space, "configmap", "app.kubernetes.io/component=relay")[0]["data"]["relay.toml"]
        config = tomllib.loads(text)
        numbers = [config["ingress"].get("connections_max", 1), *config["outputs"].get("kafka", {}).get("properties", {}).values()] if "outputs" in config else []
        if any(isinstance(number, float) for number in numbers):
            raise Failed(f"{self.name}: a whole number became a fraction:\n{text}")

    def no_difference(self, what):
        wanted = self.cluster.helm("template", self.release, str(CHART), "-n", self.space, "--skip-tests", "-f", "-", stdin=yaml.safe_dump(self.values)).stdout
        ran = self.cluster.kubectl("-n", self.space, "diff", "-f", "-", stdin=wanted, ok=False)
        if ran.returncode != 0:
            raise Failed(f"{self.name}: {what}: the server has something else than the chart says\n{ran.stdout}{ran.stderr}")

    def play(self):
        replicas = self.values.get("replicas", 2)
        # Without --wait, which for a Service of type LoadBalancer waits for an address that nobody here gives.
        notes = self.helm("install", {"drain": {"replicas": []}})
        if f"journal-{self.full}-0" not in notes or "helm test" not in notes:
            raise Failed(f"{self.name}: the notes do not name the claims and the test:\n{notes}")
        first = self.await_pods(replicas)
        self.numbers_are_whole()
        if not self.values.get("drain"):
            self.no_difference("after the installation")
        if self.await_pods(replicas) != first:
            raise Failed(f"{self.name}: pods were replaced for nothing")
        self.helm("upgrade", {"drain": {"replicas": []}})
        if self.await_pods(replicas) != first:
            raise Failed(f"{self.name}: an upgrade without a change replaced pods")
        if "Succeeded" not in self.cluster.helm("test", self.release, "-n", self.space).stdout and not self.values.get("extraEnv") and "tls" not in self.values.get("config", {}).get("ingress", {}):
            raise Failed(f"{self.name}: helm test ran nothing")
        changed = {"config": {"log": {"level": "trace"}}, "drain": {"replicas": []}}
        self.helm("upgrade", changed)
        second = self.await_pods(replicas, unlike=first)
        if not self.values.get("config", {}).get("instance"):
            self.helm("upgrade", merge(changed, {"replicas": replicas + 1}))
            if not second < self.await_pods(replicas + 1):
                raise Failed(f"{self.name}: scaling up replaced pods")
            self.helm("upgrade", changed)
            self.await_pods(replicas)
            if self.claims().get(f"journal-{self.full}-{replicas}") != "Bound":
                raise Failed(f"{self.name}: the claim of the replica that is gone is gone too: {self.claims()}")
            self.helm("upgrade", merge(changed, {"drain": {"replicas": [replicas]}}))
            wait(f"{self.name}: the drain's Job to complete", lambda: any(c["type"] == "Complete" for j in self.cluster.get(self.space, "jobs") for c in j["status"].get("conditions", [])))
        before = self.claims()
        self.cluster.helm("uninstall", self.release, "-n", self.space, "--wait")
        wait(f"{self.name}: no pod", lambda: not self.pods())
        if self.values.get("persistence", {}).get("whenDeleted") == "Delete":
            wait(f"{self.name}: no claim, as persistence.whenDeleted asks", lambda: not self.claims())
            return f"{self.name}: {replicas} replicas; claims went, as asked"
        time.sleep(2)  # What would delete them has had its chance.
        if self.claims() != before:
            raise Failed(f"{self.name}: uninstalling took claims: {before} before, {self.claims()} after")
        left = self.cluster.kubectl("-n", self.space, "get", "all,configmap,networkpolicy,ingress,httproute,podmonitor,prometheusrule,pdb,serviceaccount", "-o", "name").stdout.split()
        if strays := [one for one in left if "kube-root-ca" not in one and one not in ("serviceaccount/default", "serviceaccount/telephony")]:
            raise Failed(f"{self.name}: left behind: {strays}")
        return f"{self.name}: {replicas} replicas; {len(before)} claims stay"


def without_helm(cluster):
    space = "plain"
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}])
    cluster.kubectl("-n", space, "apply", "-f", str(ROOT / "deploy/kubernetes.yaml"))
    cluster.kubectl("-n", space, "rollout", "status", "statefulset/sipsim-relay", "--timeout=120s")
    if cluster.kubectl("-n", space, "diff", "-f", str(ROOT / "deploy/kubernetes.yaml"), ok=False).returncode != 0:
        raise Failed("deploy/kubernetes.yaml: the server has something else than the file says")
    cluster.kubectl("delete", "namespace", space)
    return "deploy/kubernetes.yaml: applied, ready, no difference"


def main():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sipsim-relay-kubernetes-"))
    cluster = Cluster(folder)
    failed = []
    try:
        cluster.start()
        cases = {"defaults": {}, **{file.stem: yaml.safe_load(file.read_text()) for file in sorted(VALUES.glob("*.yaml"))}}
        only = os.environ.get("CASES", "").split()
        todo = [(name, lambda name=name, values=values: Case(cluster, name, values).play()) for name, values in cases.items() if not only or name in only]
        for name, play in [*todo, ("deploy/kubernetes.yaml", lambda: without_helm(cluster))]:
            start = time.monotonic()
            try:
                print(f"{play()}, {time.monotonic() - start:.0f} s", flush=True)
            except Failed as error:
                failed.append(name)
                print(f"{name}: FAILED\n{error}", flush=True)
    except Failed as error:
        failed.append("start")
        print(error)
    finally:
        if os.environ.get("KEEP"):
            print(f"Left running; kubectl: {HOME}/bin/kubectl --kubeconfig {cluster.config}; pids: {[one.pid for _, one in cluster.running]}")
        else:
            cluster.stop()
            if not failed:
                shutil.rmtree(folder)
            else:
                print(f"Logs: {folder}")
    return 1 if failed else 0


sys.exit(main())
