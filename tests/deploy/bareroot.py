"""bareroot.py PROGRAM   The program with just the files that the image would hold, in a root of its own (bubblewrap): read-only, uid 65532, no
capabilities, only the journal's folder writable. It starts, makes topics over TLS with nothing but the system's roots, takes signed webhooks, publishes
them to a real Kafka and a real RabbitMQ over TLS, answers its health check, drains, and ends with exit code 0.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).parents[2]
EVENTS = 50


def fail(text):
    sys.exit(f"bare root: {text}")


def certificates(folder):
    """An authority and a server's certificate for 127.0.0.1 and localhost."""
    run = lambda *args: subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    run(*new, "-x509", "-days", "2", "-subj", "/CN=bare root authority", "-keyout", "ca.key", "-out", "ca.crt")
    run(*new, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    run("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", "server.crt")
    (folder / "server.pem").write_text((folder / "server.key").read_text() + (folder / "server.crt").read_text())
    for file in folder.iterdir():
        file.chmod(0o644)  # RabbitMQ runs as nobody.


def start_brokers(folder, home):
    folder.mkdir()
    port = 20000 + os.getpid() % 6000 * 2 + 1  # Below the range for clients' ports.
    properties = {
        "listener.security.protocol.map": "PLAINTEXT:SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": f"{home}/server.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": f"{home}/ca.crt",
    }
    lines = [f"listeners.ssl.1 = 127.0.0.1:{port}"]
    lines += [f"ssl_options.{key} = {home}/{file}" for key, file in [("cacertfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key")]]
    options = [x for k, v in properties.items() for x in ("--kafka-property", f"{k}={v}")] + [x for line in lines for x in ("--rabbitmq-conf", line)]
    command = [ROOT / "scripts/brokers", "start", "all", "--dir", folder, "--while", str(os.getpid()), *options]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return re.search(r"^KAFKA=(.*)$", out, re.M)[1], port


def build_root(root, program, authority):
    """What `gcr.io/distroless/cc` holds, as far as the program could see it, and what the Dockerfile adds."""
    def put(source, target, mode):
        target = root / target.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(mode)

    put(program, "/usr/local/bin/sipsim-relay", 0o755)
    libraries = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", libraries):
        put(library, library, 0o755)
    names = sorted(re.findall(r"^\s*(\S+?)(?: =>|\s\(|$)", libraries, re.M))
    allowed = {"linux-vdso.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "/lib64/ld-linux-x86-64.so.2", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libssl.so.3", "libcrypto.so.3"}
    if strange := [name for name in names if name not in allowed]:
        fail(f"the program wants libraries that the image does not have: {strange}")
    put(authority, "/etc/ssl/certs/ca-certificates.crt", 0o644)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n")
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for folder in ["proc", "dev", "etc/sipsim-relay/config", "etc/sipsim-relay/accounts/default", "var/lib/sipsim-relay"]:
        (root / folder).mkdir(parents=True, exist_ok=True)


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    work = pathlib.Path(tempfile.mkdtemp(prefix="sipsim-relay-bareroot-", dir="/tmp"))
    work.chmod(0o755)
    relay = None
    try:
        (work / "tls").mkdir()
        certificates(work / "tls")
        kafka, rabbitmq = start_brokers(work / "brokers", work / "tls")
        build_root(work / "root", program, work / "tls/ca.crt")
        journal = work / "journal"
        journal.mkdir()
        if os.getuid() == 0:
            os.chown(journal, 65532, 65532)
        public, admin = (20001 + (os.getpid() + 3000 + n) % 6000 * 2 for n in (0, 1))
        (work / "root/etc/sipsim-relay/accounts/default/sipsim").write_text("0123456789abcdef0123456789abcdef")
        (work / "root/etc/sipsim-relay/config/relay.toml").write_text(f"""
[ingress]
listen = "127.0.0.1:{public}"
[admin]
listen = "127.0.0.1:{admin}"
[accounts.default]
secrets = "/etc/sipsim-relay/accounts/default"
[journal]
path = "/var/lib/sipsim-relay/journal/journal.db"
size_max = "200 MiB"
[outputs.kafka]
brokers = "{kafka}"
security.protocol = "SSL"
[outputs.rabbitmq]
urls = ["amqps://127.0.0.1:{rabbitmq}/%2f"]
""")
        # As root we must be the outer 65532 too, or what is written would belong to root.
        become = ["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups"] if os.getuid() == 0 else []
        sandbox = [*become, "bwrap", "--unshare-user", "--uid", "65532", "--gid", "65532", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
        sandbox += ["--ro-bind", str(work / "root"), "/", "--proc", "/proc", "--dev", "/dev", "--bind", str(journal), "/var/lib/sipsim-relay"]
        sandbox += ["--chdir", "/var/lib/sipsim-relay", "--cap-drop", "ALL", "--clearenv", "--remount-ro", "/"]
        inside = [*sandbox, "/usr/local/bin/sipsim-relay"]
        config = ["--config", "/etc/sipsim-relay/config/relay.toml"]

        def command(*args, expect=0):
            ran = subprocess.run([*inside, *args], capture_output=True, text=True, timeout=120)
            if ran.returncode != expect:
                fail(f"{' '.join(args)}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
            return ran.stdout

        command("topics", "--create", "--yes", *config)
        log = open(work / "log", "w")
        relay = subprocess.Popen([*inside, "run", *config], stdout=log, stderr=log)

        def get(path):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{admin}{path}", timeout=5) as answer:
                    return answer.read().decode()
            except OSError:
                return None

        def wait(what, condition):
            end = time.monotonic() + 60
            while not condition():
                if relay.poll() is not None or time.monotonic() > end:
                    fail(f"waited in vain for {what}; the relay's log:\n{(work / 'log').read_text()}")
                time.sleep(0.05)

        wait("readiness", lambda: get("/readyz") is not None)
        command("healthcheck", "--ready", *config)
        out = command("simulate", "--to", f"http://127.0.0.1:{public}/webhooks/sipsim", "--secret-file", "/etc/sipsim-relay/accounts/default/sipsim", "--count", str(EVENTS), "--format", "json")
        if json.loads(out)["answers"] != {"200": EVENTS}:
            fail(f"not every event was answered 200: {out}")
        for output in ("kafka", "rabbitmq"):
            line = f'sipsim_relay_ledger_events{{output="{output}",state="published"}} {EVENTS}'
            wait(f"{EVENTS} events published to {output} over TLS", lambda: line in (get("/metrics") or ""))
        # bwrap is the sandbox's parent: the relay itself is its child's child.
        pid = relay.pid
        while children := pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        if not re.search(r"^CapEff:\s+0+$", status, re.M) or not re.search(r"^CapBnd:\s+0+$", status, re.M):
            fail("the relay has capabilities")
        os.kill(pid, signal.SIGTERM)
        if relay.wait(30) != 0:
            fail(f"SIGTERM: exit code {relay.returncode}\n{(work / 'log').read_text()}")
        command("drain", *config)
        modes = {str(f.relative_to(journal)): oct(f.stat().st_mode & 0o777) for f in journal.rglob("*")}
        if modes["journal"] != "0o700" or set(modes.values()) != {"0o700", "0o600"}:
            fail(f"the journal's folder is 0700 and its files 0600, but here: {modes}")
        print(f"Bare root: {program.parent.name} build, {EVENTS} events over TLS to Kafka and RabbitMQ with system roots alone; read-only, uid 65532, no capabilities.")
    finally:
        if relay and relay.poll() is None:
            relay.kill()
        subprocess.run([ROOT / "scripts/brokers", "stop", "--dir", work / "brokers", "--kill"], check=False)
        shutil.rmtree(work, ignore_errors=True)


main()
