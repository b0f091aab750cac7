"""A comparison as one HTML page that needs nothing but itself."""

from __future__ import annotations

from html import escape

from headrace.benchmark.comparison.join import Comparison, label, varying
from headrace.benchmark.comparison.plots import LIGHT, SERIES, draw_svg, panels
from headrace.benchmark.comparison.terminal import rule
from headrace.benchmark.tables import number

_DARK = {"ink": "#e6edf3", "quiet": "#adb5bf", "faint": "#3d444d", "paper": "#0d1117"}
_DARK_SERIES = ("#58a6ff", "#f0a050", "#5fc48a", "#bc8cff", "#ff7b84", "#9da7b3")

_STYLE = """
:root { color-scheme: light dark; %(light)s }
@media (prefers-color-scheme: dark) { :root { %(dark)s } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
figure { margin: 1rem 0; } figure svg { width: 100%%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child { text-align: left; }
.runs th, .runs td { text-align: left; } .runs code { overflow-wrap: anywhere; }
code { font: 13px/1.4 ui-monospace, monospace; }
"""


def page(comparison: Comparison) -> str:
    """The page: pictures, tables, the rule of noise, and where each record comes from.

    Raises:
        ConfigurationError: matplotlib is missing.
    """
    title = " against ".join(comparison.labels)
    figures = [
        f'<figure role="img" aria-label="{escape(panel.title)}">'
        f"{draw_svg(panel, comparison.labels, index)}</figure>"
        for index, panel in enumerate(panels(comparison))
    ]
    first = escape(comparison.labels[0])
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Figures such as 1.25× say how many times as good as {first}: its time divided by the "
        f"other's, or the other's rate divided by its own. {escape(rule(comparison.repeatability))}"
        "</p>",
        *([f"<p>{escape(comparison.software())}</p>"] if comparison.software() else []),
        *figures,
        *(_table(comparison, metric) for metric in comparison.metrics()),
        _runs(comparison),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without it a browser asks the server for an icon.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _style() -> str:
    def variables(named: dict[str, str], series: tuple[str, ...]) -> str:
        every = named | {f"series-{index}": colour for index, colour in enumerate(series)}
        return " ".join(f"--{name}: {colour};" for name, colour in every.items())

    return _STYLE % {"light": variables(LIGHT, SERIES), "dark": variables(_DARK, _DARK_SERIES)}


def _table(comparison: Comparison, metric: str) -> str:
    lines = comparison.of(metric)
    names = varying(lines)
    first, *others = map(escape, comparison.labels)
    heads = [lines[0].unit, first]
    for series in others:
        heads += [series, f"against {first}"]
    rows = []
    for line in lines:
        cells = [escape(label(line.facts, names))]
        for index, (row, difference) in enumerate(zip(line.rows, line.differences, strict=True)):
            cells.append("–" if row is None else number(row.value))
            if index:
                cells.append("" if difference is None else str(difference))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        f'<h2>{escape(metric)}</h2>\n<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody>\n</table></div>"
    )


def _runs(comparison: Comparison) -> str:
    rows = []
    for name, record in zip(comparison.labels, comparison.records, strict=True):
        versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
        system = f"{record.system} {record.system_version}".strip()
        cells = (name, record.device, record.driver or "", system, record.commit[:12], versions)
        rows.append(
            "<tr>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + f"<td><code>{escape(record.command)}</code></td></tr>"
        )
    heads = ("", "device", "driver", "system", "commit", "versions", "command")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        f'<h2>Runs</h2>\n<div class="scroll"><table class="runs">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody>\n</table></div>"
    )
