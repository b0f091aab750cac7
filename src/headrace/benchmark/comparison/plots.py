"""Bars of each series side by side, with the gain on top; as PNG and as SVG that takes a theme."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from headrace.benchmark.comparison.join import Comparison, label, varying
from headrace.link.errors import ConfigurationError

TITLES = {
    "prefill_ms": "Prefill: time to the first token (ms)",
    "ttft_ms": "Time to first token over HTTP (ms)",
    "decode_step_ms": "Decode step: time per output token (ms)",
    "tpot_ms": "Time per output token over HTTP (ms)",
    "train_step_ms": "Training step (ms)",
}
"""What is drawn, in this order."""

LIGHT = {"ink": "#1f2328", "faint": "#d0d7de", "paper": "#ffffff"}
SERIES = ("#2f6fb0", "#d9822b", "#3d8f5f", "#8d5bb5", "#b8434e", "#6b7280")
_ROOM_ABOVE = 1.18
_LOG_FROM = 60.0
"""Bars whose heights differ by more get a logarithmic axis."""


@dataclass(frozen=True)
class Panel:
    """One metric: for each category a value a series, ``None`` where it was not measured."""

    title: str
    axis: str
    categories: list[str]
    values: list[list[float | None]]
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
                [
                    [None if (row := line.rows[series]) is None else row.value for line in lines]
                    for series in range(len(comparison.labels))
                ],
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
    figure = _figure(9.0, 3.7 * len(drawn))
    every = figure.subplots(len(drawn), 1, squeeze=False)
    for panel, row in zip(drawn, every, strict=True):
        _draw(panel, row[0], comparison.labels)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Records": digest, "Software": None})
    return out.getvalue()


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
    heights = [value for values in panel.values for value in values if value]
    logarithmic = max(heights) / min(heights) > _LOG_FROM
    for series, name in enumerate(labels):
        colour = SERIES[series % len(SERIES)]
        shift = (series - (count - 1) / 2) * width
        places = [index + shift for index in range(len(panel.categories))]
        values = [value or 0.0 for value in panel.values[series]]
        axes.bar(places, values, width * 0.94, color=colour, label=name)
        for place, value, gain in zip(places, values, panel.gains[series], strict=True):
            axes.annotate(
                gain, (place, value), xytext=(0, 2), textcoords="offset points",
                ha="center", va="bottom", fontsize=8, color=LIGHT["ink"],
            )  # fmt: skip
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
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LIGHT["faint"])
    axes.legend(
        loc="lower right", ncols=count, fontsize=9, frameon=False, labelcolor=LIGHT["ink"],
        bbox_to_anchor=(1.0, 0.98),
    )  # fmt: skip
