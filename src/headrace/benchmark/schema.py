"""The records' JSON Schema, made from their structs.

python -m headrace.benchmark.schema > docs/record.schema.json
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from headrace.benchmark.record import Record

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def record_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one record file."""
    schema = msgspec.json.schema(Record)
    for definition in schema["$defs"].values():
        # Some versions of Python keep a docstring's indentation.
        definition["description"] = inspect.cleandoc(definition["description"])
    return {"$schema": _DIALECT, "title": "A recorded run", **schema}


def main() -> None:
    """Print it."""
    print(msgspec.json.format(msgspec.json.encode(record_schema()), indent=1).decode())


if __name__ == "__main__":
    main()
