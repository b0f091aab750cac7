"""Bars of each series side by side, the gain on top; as PNG and as SVG that takes a theme.

A bar is a median with its value above it and a thin line from the lowest to the highest sample.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from headrace.benchmark.comparison.join import Comparison, label, varying
from headrace.benchmark.record import Row
from headrace.benchmark.tables import number
from headrace.link.errors import ConfigurationError

TITLES = {
    "prefill_ms": "Prefill: time to the first token (ms)",
    "ttft_ms": "Time to first token over HTTP (ms)",
    "decode_step_ms": "Decode step: time per output token (ms)",
    "tpot_ms": "Time per output token over HTTP (ms)",
    "train_step_ms": "Training step (ms)",
}
"""What is drawn, in this order."""

_FORMAT_OF = {"weights": "weights", "kv": "KV cache"}

LIGHT = {"ink": "#1f2328", "quiet": "#48515b", "faint": "#d0d7de", "paper": "#ffffff"}
SERIES = ("#2f6fb0", "#d9822b", "#3d8f5f", "#8d5bb5", "#b8434e", "#6b7280")
_ROOM_ABOVE = 1.22
_MOST_VALUES = 24
"""More bars than that are too narrow for their values."""

_LOG_FROM = 60.0
"""Bars whose heights differ by more get a logarithmic axis."""


@dataclass(frozen=True)
class Panel:
    """One metric: for each series a row a category, ``None`` where it was not measured."""

    title: str
    axis: str
    categories: list[str]
    rows: list[list[Row | None]]
    gains: list[list[str]]


def panels(comparison: Comparison) -> list[Panel]:
    """What can be drawn of a comparison."""
    made = []
    for metric, title in TITLES.items():
        lines = comparison.of(metric)
        if not lines:
            continue
        names = varying(lines)
        sizes = [name for name in ("batch", "context") if name in names]
        made.append(
            Panel(
                title,
                " × ".join({"batch": "batch", "context": "prompt tokens"}[n] for n in sizes),
                [label(line.facts, names) for line in lines],
                [[line.rows[series] for line in lines] for series in range(len(comparison.labels))],
                [
                    [str(line.differences[series] or "") for line in lines]
                    for series in range(len(comparison.labels))
                ],
            )
        )
    return made


def records_digest(files: Sequence[Path]) -> str:
    """Names and SHA-256 of records, in one line."""
    return " ".join(
        f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files
    )


def draw_png(comparison: Comparison, digest: str) -> bytes:
    """All panels below one another.

    Args:
        digest: ``records_digest``, kept as the file's text ``Records``, so that a picture can be
            held against what it was drawn from.

    Raises:
        ConfigurationError: matplotlib is missing, or there is nothing to draw.
    """
    drawn = panels(comparison)
    if not drawn:
        raise ConfigurationError(f"nothing to draw: the records share none of {', '.join(TITLES)}")
    figure = _figure(9.6, 3.5 * len(drawn) + 0.4)
    figure.suptitle(subject(comparison), x=0.012, ha="left", fontsize=10, color=LIGHT["quiet"])
    every = figure.subplots(len(drawn), 1, squeeze=False)
    for panel, row in zip(drawn, every, strict=True):
        _draw(panel, row[0], comparison.labels)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=150, metadata={"Records": digest, "Software": None})
    return out.getvalue()


def subject(comparison: Comparison) -> str:
    """What all records measured: the model, formats of weights and cache if they agree, commits
    if they do not.
    """
    models = {record.model for record in comparison.records}
    told = [str(model) for model in models if len(models) == 1 and model is not None]
    for name in ("weights", "kv"):
        formats = {str(line.facts[name]) for line in comparison.lines if name in line.facts}
        told += [f"{_FORMAT_OF[name]} {format}" for format in formats if len(formats) == 1]
    line = ", ".join(told) + "; " * bool(told) + "bars: medians, lines: lowest to highest sample"
    return "\n".join(filter(None, (line, comparison.software())))


def draw_svg(panel: Panel, labels: Sequence[str], number: int) -> str:
    """One panel as an ``<svg>`` whose colours are the page's CSS variables.

    Args:
        number: Of the panel on its page, so that ids differ.

    Raises:
        ConfigurationError: matplotlib is missing.
    """
    figure = _figure(9.0, 3.7)
    _draw(panel, figure.subplots(), labels)
    figure.patch.set_alpha(0.0)
    out = StringIO()
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"panel-{number}"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    for index, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--series-{index})")
    return text


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigurationError("plots need matplotlib: pip install 'headrace[bench]'") from None
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=LIGHT["paper"])
    FigureCanvasAgg(figure)
    return figure


def _draw(panel: Panel, axes: Any, labels: Sequence[str]) -> None:
    count = len(labels)
    width = 0.8 / count
    measured = [row for rows in panel.rows for row in rows if row is not None]
    heights = [row.value for row in measured if row.value]
    logarithmic = max(heights) / min(heights) > _LOG_FROM
    told = count * len(panel.categories) <= _MOST_VALUES
    for series, name in enumerate(labels):
        shift = (series - (count - 1) / 2) * width
        places = [index + shift for index in range(len(panel.categories))]
        values = [0.0 if row is None else row.value for row in panel.rows[series]]
        colour = SERIES[series % len(SERIES)]
        axes.bar(places, values, width * 0.94, color=colour, label=name)
        for place, row, gain in zip(places, panel.rows[series], panel.gains[series], strict=True):
            if row is not None:
                _annotate(axes, place, row, gain, told=told)
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(min(heights) / 2, max(heights) * 2)
    else:
        axes.set_ylim(0, max(heights) * _ROOM_ABOVE)
    axes.set_title(panel.title, loc="left", fontsize=11, color=LIGHT["ink"])
    axes.set_xlabel(panel.axis, fontsize=9, color=LIGHT["ink"])
    axes.set_xticks(range(len(panel.categories)), panel.categories, fontsize=8)
    axes.tick_params(colors=LIGHT["ink"], labelsize=8, length=0)
    axes.set_axisbelow(True)
    axes.yaxis.grid(True, color=LIGHT["faint"], linewidth=0.7)
    axes.set_facecolor("none")
    highest = max(max(row.samples) for row in measured)
    axes.set_ylim(top=max(axes.get_ylim()[1], highest * (2 if logarithmic else _ROOM_ABOVE)))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LIGHT["faint"])
    axes.legend(
        loc="lower right", ncols=count, fontsize=9, frameon=False, labelcolor=LIGHT["ink"],
        bbox_to_anchor=(1.0, 0.98),
    )  # fmt: skip


def _annotate(axes: Any, place: float, row: Row, gain: str, *, told: bool) -> None:
    """The range of the samples, the value, and the gain in bold above it."""
    lowest, highest = min(row.samples), max(row.samples)
    axes.vlines(place, lowest, highest, color=LIGHT["ink"], linewidth=0.8)
    lines = [(gain, "bold", LIGHT["ink"])] if gain else []
    if told:
        lines.insert(0, (number(row.value), "normal", LIGHT["quiet"]))
    for index, (text, weight, colour) in enumerate(lines):
        axes.annotate(
            text, (place, highest), xytext=(0, 2 + 9.5 * index), textcoords="offset points",
            ha="center", va="bottom", fontsize=7.5, fontweight=weight, color=colour,
        )  # fmt: skip
