"""The status page in a real Chromium: tests/tools/status_page.py PROGRAM FOLDER

Runs the relay PROGRAM in five states (in order, disk full, broker away, signatures wrong, and a topic held by a real RabbitMQ), looks at its page as a person at a desk in the
light and one on a phone in the dark would, and leaves the pictures in FOLDER. Fails if the page does not say what is wrong, does not follow a change by
itself, is wider than the screen, is refused anything by its own policy, or fetches anything but itself. Wants chromium and chromedriver.
"""
import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

SECRET = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
BROKERS = pathlib.Path(__file__).resolve().parents[2] / "scripts/brokers"
DESK, PHONE = (1280, 900), (390, 844)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(what, seconds, condition):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if found := condition():
                return found
        time.sleep(0.05)
    raise SystemExit(f"waited {seconds} s in vain for: {what}")


class Relay:
    """The program in a folder of its own, until closed."""

    def __init__(self, program, config, folder=None):
        self.folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="sipsim-relay-page-"))
        self.public, self.admin = free_port(), free_port()
        secrets = self.folder / "data" / "secrets"
        secrets.mkdir(mode=0o700, parents=True)
        (secrets / "sipsim").write_text(SECRET)
        (secrets / "sipsim").chmod(0o600)
        text = f'instance = "relay-0"\n[ingress]\nlisten = "127.0.0.1:{self.public}"\n[admin]\nlisten = "127.0.0.1:{self.admin}"\n{config}'
        (self.folder / "relay.toml").write_text(text)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        with open(self.folder / "log", "w") as log:
            self.process = subprocess.Popen([program, "run"], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        wait("the relay to start", 30, lambda: self.get("/startupz"))

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
            return answer.read().decode()

    def status(self):
        return json.loads(self.get("/api/v1/status"))

    def post(self, body, secret=SECRET):
        timestamp = str(int(time.time()))
        signature = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        connection = http.client.HTTPConnection("127.0.0.1", self.public, timeout=5)
        try:
            connection.request("POST", "/webhooks/sipsim", body, {"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": signature})
            return connection.getresponse().status
        finally:
            connection.close()

    def play(self, events, status=200, secret=SECRET):
        for number, event in enumerate(events):
            body = json.dumps({"event": event, "pbx_id": f"call-{number}", "caller": "+33612345678", "at": time.time()}).encode()
            answer = self.post(body, secret)
            assert answer == status, f"{event}: {answer} instead of {status}"

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Browser:
    """Chromium by WebDriver, which needs no library."""

    def __init__(self, folder):
        port = free_port()
        self.port = port
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.session = None
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars", "--disable-dev-shm-usage",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={folder}"]
        options = {"args": arguments, "binary": shutil.which("chromium"), "perfLoggingPrefs": {"enableNetwork": True, "enablePage": False}}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        wait("chromedriver", 20, lambda: self.call("GET", "/status")["ready"])
        self.session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        base = f"/session/{self.session}" if self.session else ""
        connection.request(method, base + path, None if method == "GET" else json.dumps(body or {}), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())["value"]
        connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise SystemExit(f"Chromium: {answer['message']}")
        return answer

    def devtools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def look(self, size, is_dark):
        width, height = size
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=size == PHONE)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", media="screen", features=[scheme])

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def text(self):
        return self.run("return document.body.innerText")

    def logs(self, kind):
        return self.call("POST", "/se/log", {"type": kind})

    def picture(self, file):
        image = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(image["data"]))

    def close(self):
        with contextlib.suppress(OSError, SystemExit, http.client.HTTPException):
            self.call("DELETE", "")
        self.driver.terminate()
        self.driver.wait()


def brightness(colour):
    red, green, blue = (int(part.strip()) for part in colour[colour.index("(") + 1:colour.index(")")].split(",")[:3])
    return (red * 299 + green * 587 + blue * 114) / 1000


def check(browser, relay, state, says, folder):
    """Looks at the page both ways; it must say all of `says`, and fit."""
    url = f"http://127.0.0.1:{relay.admin}/"
    for name, size, is_dark in (("desk", DESK, False), ("phone-dark", PHONE, True)):
        browser.look(size, is_dark)
        browser.logs("performance")
        browser.logs("browser")
        browser.open(url)
        text = browser.text()
        for words in says:
            assert words in text, f"{state}, {name}: the page does not say {words!r}:\n{text}"
        for personal in ("33612345678", "call-0", SECRET):
            assert personal not in browser.run("return document.documentElement.outerHTML"), f"{state}: the page shows {personal}"
        wide = browser.run("return document.documentElement.scrollWidth")
        assert wide <= size[0], f"{state}, {name}: the page is {wide} wide on a screen of {size[0]}"
        background = browser.run("let c = document.createElement('div'); c.style.color = 'Canvas'; document.body.append(c); let v = getComputedStyle(c).color; c.remove(); return v")
        assert (brightness(background) < 100) == is_dark, f"{state}, {name}: the background is {background}"
        # The style sheet of the page passes its own policy.
        assert browser.run("return getComputedStyle(document.querySelector('.card')).borderLeftStyle") == "solid", f"{state}, {name}: without its style"
        complaints = [entry["message"] for entry in browser.logs("browser") if "favicon" not in entry["message"]]
        assert not complaints, f"{state}, {name}: {complaints}"
        for entry in browser.logs("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked = message["params"]["request"]["url"]
                assert asked.startswith((url, "data:")), f"{state}, {name}: the page asks for {asked}"
        browser.picture(folder / f"{state}-{name}.png")


CALL = ["incoming_call_start", "incoming_call_answer", "incoming_call_end", "summary", "sms"]
AWAY = '[outputs.kafka]\nbrokers = "127.0.0.1:1"\n'


def in_order(program, browser, folder):
    relay = Relay(program, "[outputs.console]\n")
    try:
        relay.play(CALL)
        wait("all to be published", 30, lambda: relay.status()["outputs"]["console"]["pending"] == 0)
        says = ["comes in", "accepting", "take all", "everything is delivered", "incoming_call_end", "sipsim: 2", "relay-0", "Nothing waits in it"]
        check(browser, relay, "in-order", says, folder)
        # It follows by itself, without a click or a script.
        assert browser.run("return document.scripts.length") == 0
        relay.play(["voicemail"])
        wait("the page to show by itself what came", 20, lambda: "voicemail" in browser.text())
    finally:
        relay.close()


def disk_full(program, browser, folder):
    # More is asked for than the disk has, which is what a full one looks like.
    free = shutil.disk_usage(tempfile.gettempdir()).free
    relay = Relay(program, f'[outputs.console]\n[journal]\nfree_min = "{free // 2**20 + 2**20} MiB"\n')
    try:
        wait("it to be unready", 20, lambda: not relay.status()["accepting"])
        relay.play(CALL, status=503)
        check(browser, relay, "disk-full", ["not accepting", "are free on its disk", "Answered 503", "disk 5"], folder)
    finally:
        relay.close()


def broker_away(program, browser, folder):
    relay = Relay(program, f"[outputs.console]\n{AWAY}")
    try:
        relay.play(CALL * 20)
        wait("the broker to be missed", 60, lambda: relay.status()["outputs"]["kafka"]["last_error"])
        wait("the oldest to be told", 20, lambda: relay.status()["outputs"]["kafka"]["oldest_pending_age_seconds"] > 0)
        wait("a rate to be known", 30, lambda: relay.status()["outputs"]["console"]["published_per_second"] is not None)
        check(browser, relay, "broker-away", ["accepting", "away", "kafka does not answer", "100 pending", "Events wait in it"], folder)
    finally:
        relay.close()


def topic_held(program, browser, folder):
    """A real RabbitMQ with a queue for one group of events, and none for the others."""
    with contextlib.ExitStack() as after:
        home = pathlib.Path(tempfile.mkdtemp(prefix="sipsim-relay-page-broker-", dir="/tmp"))
        after.callback(shutil.rmtree, home, ignore_errors=True)
        home.chmod(0o755)
        after.callback(subprocess.run, [BROKERS, "stop", "--dir", home, "--kill"], check=False)
        out = subprocess.run([BROKERS, "start", "rabbitmq", "--dir", home, "--while", str(os.getpid())], check=True, stdout=subprocess.PIPE, text=True).stdout
        address = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

        def order(method, path, body):
            credentials = base64.b64encode(b"guest:guest").decode()
            asked = urllib.request.Request(address["RABBITMQ_MANAGEMENT"] + path, json.dumps(body).encode(), {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}, method=method)
            urllib.request.urlopen(asked, timeout=30).close()

        order("PUT", "/api/queues/%2f/sipsim.call", {"durable": True})
        order("PUT", "/api/exchanges/%2f/sipsim", {"type": "topic", "durable": True})
        order("POST", "/api/bindings/%2f/e/sipsim/q/sipsim.call", {"routing_key": "sipsim.call.*"})
        relay = Relay(program, f'[outputs.rabbitmq]\nurls = ["{address["RABBITMQ"]}"]\n')
        after.callback(relay.close)
        relay.play(CALL)
        output = lambda: relay.status()["outputs"]["rabbitmq"]
        # The call's three went out; the summary and the message wait, each where nobody takes it.
        wait("two keys to be held and the rest to be out", 60, lambda: len(output()["held"]) == 2 and output()["pending"] == 2)
        check(browser, relay, "topic-held", ["accepting", "a topic is held", "2 pending", "sipsim.ai.summary", "sipsim.sms.sms", "unroutable"], folder)


def signatures_wrong(program, browser, folder):
    relay = Relay(program, "[outputs.console]\n")
    try:
        relay.play(CALL, status=401, secret="not the secret of this relay, but another")
        wait("the cause to be found", 20, lambda: relay.status()["last_refused"])
        check(browser, relay, "signatures-wrong", ["nothing is proved genuine", "bad_signature 5", "Newest refused webhook"], folder)
    finally:
        relay.close()


def main():
    program, folder = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    profile = tempfile.mkdtemp(prefix="sipsim-relay-chromium-")
    browser = Browser(profile)
    try:
        for state in (in_order, disk_full, broker_away, signatures_wrong, topic_held):
            state(program, browser, folder)
            print(f"{state.__name__}: as it should be")
    finally:
        browser.close()
        shutil.rmtree(profile, ignore_errors=True)
    print(f"pictures in {folder}")


if __name__ == "__main__":
    main()
