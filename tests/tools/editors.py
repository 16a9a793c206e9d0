"""editors.py PROGRAM   Editors complete relay.toml from the schema that PROGRAM prints, as the head of relay.toml says: Tombi's language server, asked as
an editor asks, offers keys and values; Taplo and Tombi take the relay.toml of this repository, and name what is misspelt.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = pathlib.Path(sys.prefix, "bin")
HEAD = "#:schema schemas/relay.toml.schema.json\n"
# What stands in the file up to the cursor, and what has to be offered.
COMPLETED = [
    ("[jour", ["journal"]),
    ("[ingress]\nbo", ["body_max"]),
    ("accounts.default.", ["path", "secrets", "tolerance", "keep_refused"]),
    ("[outputs.kafka]\nmode = ", ['"structured"', '"binary"']),
    ("[outputs.kafka.security]\nmechanism = ", ['"PLAIN"', '"SCRAM-SHA-256"', '"SCRAM-SHA-512"', '"OAUTHBEARER"']),
]
MISSPELT = {"[journl]\n": "journl", '[ingress]\nlisen = "127.0.0.1:1"\n': "lisen", "[ingress]\nbody_max = 5\n": "5", '[outputs.kafka]\nmode = "binry"\n': "binry"}


class LanguageServer:
    def __init__(self, folder):
        self.process = subprocess.Popen([TOOLS / "tombi", "lsp", "--offline"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.uri, self.asked = folder.as_uri(), 0
        workspace = {"processId": os.getpid(), "rootUri": self.uri, "workspaceFolders": [{"uri": self.uri, "name": "it"}], "capabilities": {}}
        self.ask("initialize", workspace)
        self.tell(method="initialized", params={})

    def tell(self, **message):
        text = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
        self.process.stdin.flush()

    def hear(self):
        size = 0
        while line := self.process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            size = int(value) if name.lower() == b"content-length" else size
        return json.loads(self.process.stdout.read(size))

    def ask(self, method, params):
        self.asked += 1
        self.tell(id=self.asked, method=method, params=params)
        while True:
            message = self.hear()
            if "method" in message and "id" in message:  # A question of its own, such as for its settings.
                self.tell(id=message["id"], result=None)
            elif message.get("id") == self.asked:
                return message["result"]

    def complete(self, text, wanted):
        """What is offered, once that is all that is wanted, or after ten seconds: the server reads the document and its schema beside its answers, and offers nothing until then."""
        document = f"{self.uri}/{self.asked}.toml"
        self.tell(method="textDocument/didOpen", params={"textDocument": {"uri": document, "languageId": "toml", "version": 1, "text": text}})
        position = {"line": text.count("\n"), "character": len(text.rpartition("\n")[2])}
        until = time.monotonic() + 10
        while True:
            found = self.ask("textDocument/completion", {"textDocument": {"uri": document}, "position": position}) or []
            labels = [item["label"] for item in (found if isinstance(found, list) else found["items"])]
            if set(wanted) <= set(labels) or time.monotonic() > until:
                return labels
            time.sleep(0.02)


def lint(folder, text):
    """What each tool says of the file, or nothing if it is in order."""
    (folder / "relay.toml").write_text(text)
    said = {}
    for name, arguments in [("taplo", ["lint"]), ("tombi", ["lint", "--offline"])]:
        ran = subprocess.run([TOOLS / name, *arguments, "relay.toml"], cwd=folder, capture_output=True, text=True, timeout=60, env={"HOME": str(folder), "NO_COLOR": "1"})
        said[name] = ran.stdout + ran.stderr if ran.returncode else ""
    return said


def main():
    program, problems = os.path.abspath(sys.argv[1]), []
    with tempfile.TemporaryDirectory(prefix="sipsim-relay-editors-") as name:
        folder = pathlib.Path(name)
        (folder / "schemas").mkdir()
        schema = subprocess.run([program, "schema", "configuration"], cwd=folder, capture_output=True, check=True).stdout
        (folder / "schemas/relay.toml.schema.json").write_bytes(schema)
        for tool, said in lint(folder, HEAD + (ROOT / "relay.toml").read_text()).items():
            if said:
                problems.append(f"{tool} does not take relay.toml: {said}")
        for text, word in MISSPELT.items():
            for tool, said in lint(folder, HEAD + text).items():
                if word not in said:
                    problems.append(f"{tool} does not name {word!r} in {text!r}: {said or 'it finds it in order'}")
        server = LanguageServer(folder)
        try:
            for text, wanted in COMPLETED:
                found = server.complete(HEAD + text, wanted)
                if missing := [one for one in wanted if one not in found]:
                    problems.append(f"behind {text!r} an editor is offered {found}, without {missing}")
        finally:
            server.process.kill()
            server.process.wait()
    for one in problems:
        print(one)
    print(f"Editors: {len(COMPLETED)} completions, {len(MISSPELT)} mistakes, {len(problems)} problems.")
    return 1 if problems else 0


sys.exit(main())
