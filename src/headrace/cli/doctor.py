"""``headrace doctor``: what this machine is, and which backends work on it."""

from __future__ import annotations

import click


@click.command("doctor")
def command() -> int:
    """Say what this machine is, what is installed, and which backends work and why others do not.

    The exit status is 1 where no backend works.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from headrace.cli.diagnosis.backends import find_backends
    from headrace.cli.diagnosis.machine import describe_machine
    from headrace.cli.diagnosis.versions import describe_versions

    console = Console(highlight=False)
    for title, pairs in (("Machine", describe_machine()), ("Versions", describe_versions())):
        table = Table.grid(padding=(0, 2))
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
