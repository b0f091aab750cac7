"""Which backends work here, asked of a process of its own: the command line never loads torch."""

from __future__ import annotations

import msgspec

from headrace.cli.diagnosis.probe import ProbeFailed, json_lines

_SECONDS = 120
_MODULE = "headrace.modeling.backends.survey"


class Backend(msgspec.Struct, frozen=True):
    """A backend, whether it works on this machine, and with what or why not."""

    name: str
    works: bool
    detail: str


def find_backends() -> list[Backend]:
    """Every backend that headrace knows."""
    try:
        return [msgspec.json.decode(line, type=Backend) for line in json_lines(_MODULE, _SECONDS)]
    except (ProbeFailed, msgspec.MsgspecError) as error:
        return [Backend("torch", False, f"importing it: {error}")]
