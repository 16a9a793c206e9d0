"""Judges values by the schemas of schemas/ with the package `jsonschema`.

    scripts/python tests/tools/validate.py FILE

FILE holds a JSON list of [schema, value], a schema being an event's name, `envelope` or `configuration`. Prints a JSON list with, for each, null if
it is valid, or where it is not.
"""

import functools
import json
import pathlib
import sys

from jsonschema import Draft202012Validator

SCHEMAS = pathlib.Path(__file__).resolve().parents[2] / "schemas"
FILES = {"envelope": "envelope", "configuration": "relay.toml"}


@functools.cache
def validator(name):
    schema = json.loads((SCHEMAS / f"{FILES.get(name, 'events/' + name)}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def problem(name, value):
    error = next(validator(name).iter_errors(value), None)
    return None if error is None else f"{error.json_path}: {error.message[:200]}"


def main():
    pairs = json.loads(pathlib.Path(sys.argv[1]).read_text())
    print(json.dumps([problem(name, value) for name, value in pairs]))


if __name__ == "__main__":
    main()
