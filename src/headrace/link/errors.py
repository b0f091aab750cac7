"""The errors that cross process borders, each with the code that clients see.

``ErrorCode`` values are TGI's ``error_type`` strings where TGI has one.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Machine-readable kinds of failure; the transport maps each to an HTTP status."""

    VALIDATION = "validation"
    TEMPLATE = "template_error"
    MISSING_TEMPLATE_VARIABLE = "missing_template_variable"
    TOOL = "tool_error"
    GENERATION = "generation"
    OVERLOADED = "overloaded"
    INCOMPLETE_GENERATION = "incomplete_generation"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ENGINE_LOST = "engine_lost"
    SHUTTING_DOWN = "shutting_down"


class HeadraceError(Exception):
    """Base of every error that headrace raises on purpose."""

    code: ErrorCode = ErrorCode.GENERATION


class InvalidRequest(HeadraceError):
    """A request was refused: names the field, the value and the bound.

    Attributes:
        field: Name of the offending parameter, as the client wrote it.
        value: The refused value, shortened where it is long.
        bound: What would have been accepted, in words.
    """

    code = ErrorCode.VALIDATION

    def __init__(self, field: str, value: object, bound: str) -> None:
        self.field = field
        self.value = value
        self.bound = bound
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"`{field}` must be {bound}, got {shown}")


class ConfigurationError(HeadraceError):
    """A setting or a model on disk cannot be used; the message is one clear line for the user."""

    code = ErrorCode.VALIDATION
