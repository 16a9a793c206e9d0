"""Runs the commands of README.md in a copy of the work tree, as somebody would who follows it from top to bottom.

    scripts/python tests/tools/readme.py README.md

The line before each block of shell or TOML says, as a comment that readers do not see, what is to become of it:

    <!-- run -->                          a shell block; exit code 0
    <!-- run: prints TEXT -->             the same, and TEXT is in what it prints
    <!-- run: until it prints TEXT -->    left running, for what follows, once TEXT is in what it prints; SIGINT at the end
    <!-- check -->                        a TOML block that `sipsim-relay check` has nothing against
    <!-- not run: REASON -->

A block without such a line is an error, so that none is forgotten. One more error: a block that takes longer than ten minutes.
"""

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

LIMIT = 600  # Seconds a block: a build from nothing is in it.
BLOCK = re.compile(r"(?:^<!-- *(?P<mark>.*?) *-->\n)?^```(?P<kind>sh|bash|shell|console|toml)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)


def main():
    readme = pathlib.Path(sys.argv[1]).resolve()
    text = readme.read_text()
    work = pathlib.Path(tempfile.mkdtemp(prefix="sipsim-relay-readme-"))
    work.chmod(0o711)  # RabbitMQ's user has to pass through it.
    tree = copied(readme.parent, work)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "MAKE", "MFLAGS"))}
    environment["TMPDIR"] = str(work)
    # The usual ports may be somebody else's here: README's are exchanged for free ones.
    ports = {usual: free_port() for usual in ("8080", "8081")}
    environment["RELAY_INGRESS__LISTEN"] = f"127.0.0.1:{ports['8080']}"
    environment["RELAY_ADMIN__LISTEN"] = f"127.0.0.1:{ports['8081']}"
    running, failures, count = [], 0, 0
    try:
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start("kind")) + 1
            problem = judged(block, ports, tree, environment, running)
            if problem is not None:
                count += 1
                failures += problem != ""
                print(f"{readme.name}:{line}: {problem or 'in order'}", flush=True)
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        for brokers in work.glob("sipsim-relay-brokers-*"):
            subprocess.run(["scripts/brokers", "stop", "--kill", "--dir", brokers], cwd=readme.parent, check=False)
        shutil.rmtree(work, ignore_errors=True)
    if not count:
        sys.exit(f"{readme.name} has no block that can be run")
    sys.exit(1 if failures else 0)


def copied(root, work):
    """The files that git knows or would add, and the build's folder by a link: the copy builds the same, and nobody's data are touched."""
    tree = work / "tree"
    names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, check=True, capture_output=True)
    for name in filter(None, names.stdout.decode().split("\0")):
        if (root / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, tree / name)
    (root / "target").mkdir(exist_ok=True)
    (tree / "target").symlink_to(root / "target")
    return tree


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def judged(block, ports, tree, environment, running):
    """What is wrong with a block; "" if nothing is, None if it is not to be run."""
    mark, kind, text = block["mark"] or "", block["kind"], block["text"]
    for usual, free in ports.items():
        text = text.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{free}")
    if re.fullmatch(r"not run: \S.*", mark):
        return None
    if kind == "toml" and mark == "check":
        (tree / "readme-block.toml").write_text(text)
        return ran("cargo run -q --locked -- check --config readme-block.toml", "", tree, environment)
    if kind != "toml" and (match := re.fullmatch(r"run(?:: (?P<until>until it )?prints (?P<text>.+))?", mark)):
        if match["until"]:
            return started(text, match["text"], tree, environment, running)
        return ran(text, match["text"] or "", tree, environment)
    return f"the line before this block does not say what to do with it: '{mark}'. See tests/tools/readme.py"


def ran(text, expected, tree, environment):
    process, output = spawned(text, tree, environment)
    try:
        code = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"did not end within {LIMIT} s:\n{text}{output.read_text()}"
    printed = output.read_text(errors="replace")
    if code != 0:
        return f"exit code {code}:\n{text}{printed}"
    return "" if expected in printed else f"did not print '{expected}':\n{text}{printed}"


def started(text, expected, tree, environment, running):
    process, output = spawned(text, tree, environment)
    running.append(process)
    deadline = time.monotonic() + LIMIT
    while expected not in output.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            return f"ended, or took too long, without printing '{expected}':\n{text}{output.read_text(errors='replace')}"
        time.sleep(0.1)
    return ""


def spawned(text, tree, environment):
    """A block as a shell of its own, in a process group of its own, which prints into a file: what it leaves running holds no pipe of ours."""
    descriptor, name = tempfile.mkstemp(dir=environment["TMPDIR"], suffix=".output")
    with os.fdopen(descriptor, "w") as output:
        process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", text], cwd=tree, env=environment, stdin=subprocess.DEVNULL,
                                   stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    return process, pathlib.Path(name)


main()
