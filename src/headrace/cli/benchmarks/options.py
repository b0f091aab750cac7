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


class Rates(click.ParamType[tuple[float, ...]]):
    """Positive rates separated by commas, as a tuple; ``inf`` is one."""

    name = "R,R,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parse, or fail with what was wrong."""
        if isinstance(value, tuple):
            return value
        try:
            rates = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            rates = ()
        if not rates or not all(rate > 0 for rate in rates):
            self.fail(f"'{value}' is not a list of positive rates such as 1,2.5,inf", param, ctx)
        return rates


class TokenRange(click.ParamType[tuple[int, int]]):
    """``LOW:HIGH`` tokens, both included, or one number for both."""

    name = "LOW:HIGH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse, or fail with what was wrong."""
        if isinstance(value, tuple):
            return value
        low, _, high = str(value).partition(":")
        try:
            lengths = int(low), int(high or low)
        except ValueError:
            lengths = (0, 0)
        if not 1 <= lengths[0] <= lengths[1]:
            self.fail(f"'{value}' is not a range of lengths such as 100:1024 or 512", param, ctx)
        return lengths


class TokenIds(click.ParamType[tuple[int, int]]):
    """``LOW:HIGH``, both included."""

    name = "LOW:HIGH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse, or fail with what was wrong."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = map(int, str(value).split(":"))
        except ValueError:
            low, high = 1, 0
        if not 0 <= low <= high:
            self.fail(f"'{value}' is not a range of token ids such as 1000:30000", param, ctx)
        return low, high


class Limits(click.ParamType[dict[str, float]]):
    """``ttft=500,tpot=50`` in milliseconds, as seconds by name."""

    name = "NAME=MS,…"
    known = ("ttft", "tpot", "itl", "e2e")

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        """Parse, or fail with what was wrong."""
        if isinstance(value, dict):
            return value
        limits = {}
        for part in str(value).split(","):
            name, _, text = part.partition("=")
            try:
                limits[name] = float(text) / 1e3
            except ValueError:
                limits[name] = -1.0
            if name not in self.known or not limits[name] > 0:
                known = ", ".join(self.known)
                self.fail(f"'{part}' is not a limit such as ttft=500 (of {known})", param, ctx)
        return limits
