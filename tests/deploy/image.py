"""image.py   What the Dockerfile copies gets past .dockerignore, and holds every file that the build reads. No container engine is needed to know that."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[2]
problems = []
let_through = {line[1:].strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
copied = []
for line in (ROOT / "deploy/Dockerfile").read_text().splitlines():
    if line.startswith("COPY ") and "--from" not in line:
        copied += line.split()[1:-1]
for source in copied:
    if not (ROOT / source).exists():
        problems.append(f"deploy/Dockerfile copies {source}, which does not exist")
    if source not in let_through:
        problems.append(f"deploy/Dockerfile copies {source}, which .dockerignore keeps out")
# Files that the compiler reads into the program.
for file in (ROOT / "src").rglob("*.rs"):
    if "tests" in file.parts or file.name == "tests.rs":
        continue
    for name in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', file.read_text()):
        target = (file.parent / name).resolve().relative_to(ROOT)
        if not any(target.is_relative_to(source) for source in copied):
            problems.append(f"{file.relative_to(ROOT)} reads {target} into the program, which deploy/Dockerfile does not copy")
for manifest in re.findall(r'^path = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.M):
    if not any(pathlib.PurePath(manifest).is_relative_to(source) for source in copied):
        problems.append(f"Cargo.toml names {manifest}, which deploy/Dockerfile does not copy")
for one in problems:
    print(one)
sys.exit(1 if problems else 0)
