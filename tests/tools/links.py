"""Checks the links between the repository's Markdown files: that each file, folder and heading is there, and that docs/README.md lists every page of docs/.

    scripts/python tests/tools/links.py

Links to elsewhere are not followed: that would need a network, and fail for reasons of its own.
"""

import pathlib
import re
import subprocess
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)", re.M)


def main():
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True)
    pages = [ROOT / name for name in names.stdout.splitlines() if (ROOT / name).is_file()]
    problems = [problem for page in pages for problem in wrong(page)]
    index = ROOT / "docs/README.md"
    listed = {target.split("#")[0] for _, target in links(prose(index.read_text()))}
    problems += [f"docs/README.md: does not list {page.name}" for page in pages
                 if page.parent == index.parent and page != index and page.name not in listed]
    print("\n".join(problems + [f"{len(pages)} pages, {len(problems)} problems"]))
    sys.exit(1 if problems or not pages else 0)


def wrong(page):
    for line, target in links(prose(page.read_text())):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, heading = urllib.parse.unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            yield f"{page.relative_to(ROOT)}:{line}: {target}: there is no {path}"
        elif heading and file.suffix == ".md" and heading not in headings(prose(file.read_text())):
            yield f"{page.relative_to(ROOT)}:{line}: {target}: {file.name} has no such heading"


def prose(text):
    """The text without what stands in code, every line in its place."""
    blank = lambda match: re.sub(r"[^\n]", " ", match[0])
    # Code between backticks goes only where it is no heading, whose anchor it is part of.
    text = re.sub(r"^(```|~~~).*?^\1[^\n]*$", blank, text, flags=re.M | re.S)
    return "\n".join(line if line.startswith("#") else re.sub(r"`[^`]*`(?!\])", blank, line) for line in text.split("\n"))


def links(text):
    for match in LINK.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match[1] or match[2]


def headings(text):
    """Anchors as GitHub makes them: lower case, without punctuation, a hyphen for a space, numbered when they come again."""
    found, counts = set(re.findall(r'<a (?:id|name)="([^"]+)"', text)), {}
    for title in re.findall(r"^#+\s+(.*?)\s*#*$", text, re.M):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number = counts.get(anchor, 0)
        counts[anchor] = number + 1
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


main()
