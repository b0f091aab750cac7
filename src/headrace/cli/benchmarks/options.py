"""Options that several benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The record: a .json file, or a directory to name it in. [current directory]",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Of everything that is random. [0]"
)


class Integers(click.ParamType[tuple[int, ...]]):
    """Positive integers separated by commas, as a tuple."""

    name = "N,N,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse, or fail with what was wrong."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 1:
            self.fail(f"'{value}' is not a list of positive integers such as 1,8,32", param, ctx)
        return numbers
