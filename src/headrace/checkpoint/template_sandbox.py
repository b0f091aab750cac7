"""A jinja2 environment for templates that nobody vouches for: sandboxed and bounded in work.

jinja2's immutable sandbox keeps templates from Python's internals; the bounds here keep them from
running or growing without end. They cover loops, calls and the operators that build large values.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TEXT = 16_000_000
MAX_STEPS = 2_000_000
MAX_SECONDS = 2.0
_STEPS_BETWEEN_CLOCKS = 256


class _Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self._steps = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise JinjaError(f"the template takes more than {MAX_STEPS} steps")
        if self._steps % _STEPS_BETWEEN_CLOCKS == 0 and time.monotonic() > self._deadline:
            raise JinjaError(f"the template runs for more than {MAX_SECONDS:g} s")


_budget: ContextVar[_Budget] = ContextVar("_budget")


@contextmanager
def bounded() -> Iterator[None]:
    """Give what is rendered inside a fresh budget."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


class _Counted:
    """An iterable whose items are counted against the budget."""

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        budget = _budget.get()
        for item in self._iterable:
            budget.step()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)


def _sized(value: Any) -> Any:
    if isinstance(value, str | bytes | list | tuple) and len(value) > MAX_TEXT:
        raise JinjaError(f"the template builds a value of more than {MAX_TEXT} items")
    return value


class GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance variable)

    def parse(self, parser: Parser) -> nodes.Node:
        """The enclosed statements, in a scope of their own as Transformers has it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment; use it inside ``bounded``."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
        )
        self.filters["_counted"] = _Counted
        self.filters["_sized"] = _sized
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        sized: nodes.Template = _SizeConcatenations().visit(tree)
        return sized

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Count a call, and refuse numbers that stand for the size of something huge."""
        _budget.get().step()
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, int) and abs(argument) > MAX_TEXT:
                raise JinjaError(f"the template calls a function with the number {argument}")
        return _sized(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator unless its result would be huge."""
        if operator == "*":
            _refuse_large_repetition(left, right)
            _refuse_large_repetition(right, left)
        elif operator == "**" and isinstance(right, int) and abs(right) > 64:
            raise JinjaError(f"the template raises to the power {right}")
        return _sized(super().call_binop(context, operator, left, right))


class _SizeConcatenations(NodeTransformer):
    """Holds the result of ``a ~ b`` against the bound."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 (jinja2 names it)
        self.generic_visit(node)
        return nodes.Filter(node, "_sized", [], [], None, None, lineno=node.lineno)


def _refuse_large_repetition(sequence: Any, times: Any) -> None:
    if (
        isinstance(sequence, str | bytes | list | tuple)
        and isinstance(times, int)
        and len(sequence) * times > MAX_TEXT
    ):
        raise JinjaError(f"the template builds a value of more than {MAX_TEXT} items")
