"""What the readers of Kafka and RabbitMQ have in common: one JSON line a message."""

import base64
import itertools
import json

from validate import problem

JUDGED_MAX = 300  # Messages a run: some thousand would take longer to judge than to read.
judged_so_far = itertools.count()


def encoded(value):
    """Bytes as base64 text; None, Kafka's null, stays None."""
    return None if value is None else base64.b64encode(value).decode()


def readable(value):
    """A header's or key's bytes as text; what is not UTF-8 shows as \\xNN, so that a test sees it instead of a crash."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def judged(binding, parse, message):
    """What the `cloudevents` package takes a message for: the mode it detected by itself, and the event it made of it.

    The package does not tell the mode, so its two parsers are watched while its detection calls one of them.
    """
    verdict = {}
    originals = {mode: getattr(binding, f"from_{mode}") for mode in ("binary", "structured")}

    def watched(mode):
        def parser(*args):
            verdict["mode"] = mode
            return originals[mode](*args)

        return parser

    try:
        for mode in originals:
            setattr(binding, f"from_{mode}", watched(mode))
        event = parse(message)
        data = event.get_data()
        verdict["attributes"] = {name: value if isinstance(value, (str, bool, int)) else value.isoformat()
                                 for name, value in event.get_attributes().items()}
        # As JSON text, since numbers of any size and lone surrogates would not survive every other parser.
        verdict["data"] = None if isinstance(data, bytes) else json.dumps(data)
        verdict["data_base64"] = encoded(data) if isinstance(data, bytes) else None
    except Exception as error:  # Whatever the package says of a message is the answer, not a failure of the reader.
        verdict["error"] = f"{type(error).__name__}: {error}"
    finally:
        for mode, original in originals.items():
            setattr(binding, f"from_{mode}", original)
    return verdict


def invalid(verdict, value):
    """What schemas/ has against a message of the relay: its envelope (of structured mode), and its data; None for what is in order."""
    attributes = verdict.get("attributes", {})
    if not attributes.get("type", "").startswith("com.sipsim.") or next(judged_so_far) >= JUDGED_MAX:
        return None, None
    structured = verdict["mode"] == "structured"
    envelope = json.loads(value) if structured else None
    data = None
    if "dataschema" in attributes and verdict["data"] is not None:
        event = attributes["dataschema"].removeprefix("urn:sipsim-relay:schema:").removesuffix(":1")
        data = problem(event, json.loads(verdict["data"]))
    return problem("envelope", envelope) if structured else None, data


def show(**message):
    value = message["value"]
    envelope, data = invalid(message["cloudevent"], None if value is None else base64.b64decode(value))
    print(json.dumps({**message, "invalid_envelope": envelope, "invalid_data": data}))
