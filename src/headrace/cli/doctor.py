"""``headrace doctor``: what this machine is, and which backends work on it."""

from __future__ import annotations

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Plain data, for programs.")
@click.option("--measure/--no-measure", default=True, help="Measure how fast the machine is. [yes]")
def command(as_json: bool, measure: bool) -> int:
    """Say what this machine is, what is installed, and which backends work and why others do not.

    Its text is what a bug report needs. The exit status is 1 where no backend works.
    """
    from headrace.cli.diagnosis.backends import find_backends
    from headrace.cli.diagnosis.sections import sections

    found = sections(measure=measure)
    if as_json:
        import msgspec

        told = {title: dict(pairs) for title, pairs in found}
        backends = find_backends()
        data = {**told, "Backends": backends}
        click.echo(msgspec.json.format(msgspec.json.encode(data), indent=1).decode())
        return 0 if any(backend.works for backend in backends) else 1
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for title, pairs in found:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in pairs:
            table.add_row(f"  {name}", escape(value))
        console.print(f"[bold]{title}[/bold]", table, "", sep="\n")
    backends = find_backends()
    table = Table.grid(padding=(0, 2))
    for backend in backends:
        mark = "[green]works[/green]" if backend.works else "[yellow]not here[/yellow]"
        table.add_row(f"  {backend.name}", mark, escape(backend.detail))
    console.print("[bold]Backends[/bold]", table, sep="\n")
    return 0 if any(backend.works for backend in backends) else 1
