"""A load's outcomes as rows of a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from headrace.benchmark.record import Condition, Row, median_row
from headrace.benchmark.serving.load import Load
from headrace.benchmark.serving.outcome import Outcome

_DIGITS = 3
"""Of a millisecond: microseconds."""


def load_rows(
    load: Load,
    conditions: dict[str, Condition],
    limits: dict[str, float],
    *,
    batch: int | None,
    context: int | None,
    new_tokens: int | None,
) -> list[Row]:
    """Every row of one load.

    Args:
        conditions: That tell this load from others in the record.
        limits: Name of a time (``ttft``, ``tpot``, ``itl``, ``e2e``) to the most seconds.
        batch: The cap on concurrency, where there is one.
        context, new_tokens: Of each request, where they are all alike.

    Raises:
        ValueError: no request succeeded.
    """
    outcomes = load.outcomes
    good = [outcome for outcome in outcomes if not outcome.error]
    if not good:
        raise ValueError("no request succeeded")
    seconds = load.ended - load.begun
    sizes = {"batch": batch, "context": context, "new_tokens": new_tokens}

    def row(metric: str, samples: Sequence[float], unit: str, **own: Condition) -> Row:
        return median_row(metric, samples, unit, conditions=conditions | own, **sizes)

    def times(metric: str, samples: Sequence[float]) -> list[Row]:
        milliseconds = [round(1e3 * sample, _DIGITS) for sample in samples]
        return [row(metric, milliseconds, "ms")] if milliseconds else []

    tokens = sum(outcome.output_tokens for outcome in good)
    lateness: list[float] = []
    if load.paced:
        lateness = [max(0.0, outcome.sent - outcome.due) for outcome in outcomes]
    return [
        *times("ttft_ms", [outcome.ttft for outcome in good]),
        *times("itl_ms", [gap for outcome in good for gap in outcome.gaps]),
        *times("tpot_ms", [tpot for outcome in good if (tpot := outcome.tpot) is not None]),
        *times("e2e_ms", [outcome.e2e for outcome in good]),
        row("output_tokens_per_s", [tokens / seconds], "1/s"),
        row("requests_per_s", [len(good) / seconds], "1/s"),
        row("most_in_flight", [load.most_in_flight], "requests"),
        row("within_limits", [_share_within(outcomes, limits)], "share", **_named(limits)),
        *(
            row("errors", [count], "requests", kind=kind)
            for kind, count in error_kinds(outcomes).items()
        ),
        *times("lateness_ms", lateness),
        row("client_us_per_event", [1e6 * load.processor_seconds / max(load.events, 1)], "us"),
    ]


def error_kinds(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Kind of failure to how often it came, the commonest first."""
    return dict(Counter(outcome.error for outcome in outcomes if outcome.error).most_common())


def _share_within(outcomes: Sequence[Outcome], limits: dict[str, float]) -> float:
    return sum(outcome.keeps(limits) for outcome in outcomes) / len(outcomes)


def _named(limits: dict[str, float]) -> dict[str, Condition]:
    return {f"{name}_limit_ms": 1e3 * seconds for name, seconds in limits.items()}
