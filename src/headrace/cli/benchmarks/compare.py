"""``headrace bench compare``: records side by side, in the terminal and as pictures."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("compare", context_settings={"max_content_width": 96})
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--metric", "metrics", multiple=True, help="Only this one; may be repeated.")
@click.option("--png", type=click.Path(path_type=Path), help="Draw the plots into this file.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one self-contained page.")
@click.option(
    "--noise",
    type=click.FloatRange(min=0.0, max=100.0),
    default=3.0,
    help="Medians that differ by less, in %, count as equal. [3]",
)
def command(
    files: tuple[Path, ...],
    metrics: tuple[str, ...],
    png: Path | None,
    html: Path | None,
    noise: float,
) -> int:
    """Compare records: every figure that at least two of FILES hold, against the first file's.

    1.25× means 1.25 times as good: its time divided by the other's, or the other's rate divided by
    its own. ≈ marks a difference within the noise.
    """
    from headrace.benchmark.comparison.join import compare
    from headrace.benchmark.comparison.page import page
    from headrace.benchmark.comparison.plots import draw_png, records_digest
    from headrace.benchmark.comparison.terminal import comparison_tables, rule
    from headrace.benchmark.record import load_record, write_whole
    from headrace.cli.benchmarks.terminal import wide_console

    records = [(path.stem, load_record(path)) for path in files]
    comparison = compare(records, noise / 100, metrics)
    picture = draw_png(comparison, records_digest(files)) if png else None
    document = page(comparison) if html else None
    console = wide_console()
    for table in comparison_tables(comparison):
        console.print(table)
    console.print(rule(comparison.repeatability))
    if comparison.software():
        console.print(comparison.software())
    if png and picture:
        write_whole(png, picture)
        console.print(f"plots: {png}")
    if html and document:
        write_whole(html, document.encode())
        console.print(f"page: {html}")
    return 0
