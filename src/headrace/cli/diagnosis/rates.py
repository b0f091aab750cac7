"""Measured copy bandwidth and matmul rate, by a process of its own."""

from __future__ import annotations

import msgspec

from headrace.cli.diagnosis.probe import ProbeFailed, json_lines

_SECONDS = 60
_MODULE = "headrace.hardware.rates"


class Rate(msgspec.Struct, frozen=True):
    """One figure; see ``headrace.hardware.rates``, which the command line does not import."""

    name: str
    value: float | None
    unit: str
    failure: str | None = None


def find_rates() -> list[tuple[str, str]]:
    """Pairs of what was measured and the figure, or why there is none."""
    try:
        rates = [msgspec.json.decode(line, type=Rate) for line in json_lines(_MODULE, _SECONDS)]
    except (ProbeFailed, msgspec.MsgspecError) as error:
        return [("measurement", f"failed: {error}")]
    return [(rate.name, _shown(rate)) for rate in rates]


def _shown(rate: Rate) -> str:
    return f"failed: {rate.failure}" if rate.value is None else f"{_number(rate.value)} {rate.unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
