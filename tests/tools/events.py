"""Checks docs/events.md: each event has its section, and each example in it is valid by the event's schema (the envelope's by the envelope's).

    scripts/python tests/tools/events.py
"""

import json
import pathlib
import re
import sys

from validate import SCHEMAS, problem

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/events.md"


def main():
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S))
    events = sorted(path.name.split(".")[0] for path in (SCHEMAS / "events").iterdir())
    problems = [f"no section {event}" for event in events if event not in sections]
    count = 0
    for title, name in [("The envelope", "envelope"), *((event, event) for event in events)]:
        for example in re.findall(r"^```json\n(.*?)^```", sections.get(title, ""), re.M | re.S):
            count += 1
            value = json.loads(example)
            parts = [(name, value)]
            if name == "envelope":
                parts.append((value["type"].removeprefix("com.sipsim."), value["data"]))
            problems += [f"{title}: {found}" for part in parts if (found := problem(*part))]
    print("\n".join(problems + [f"docs/events.md: {count} examples, {len(problems)} problems"]))
    sys.exit(1 if problems or count < 18 else 0)


main()
