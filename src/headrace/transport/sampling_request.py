"""The bounds that the server's settings put on a request, and what all dialects translate alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.link.errors import InvalidRequest
from headrace.transport.request_model import invalid
from headrace.transport.settings import TransportSettings


def check_stop(
    stop: Sequence[str] | None, settings: TransportSettings, field: str = "stop"
) -> tuple[str, ...]:
    """The stop strings, held against the settings.

    Raises:
        RequestFailure: too many, an empty one, or a very long one.
    """
    strings = tuple(stop or ())
    if len(strings) > settings.max_stop_sequences:
        raise invalid(
            f"`{field}` must have at most max_stop_sequences ({settings.max_stop_sequences}) "
            f"strings, got {len(strings)}",
            field,
        )
    for string in strings:
        if not 1 <= len(string) <= settings.max_stop_length:
            raise InvalidRequest(field, string, f"of 1 to {settings.max_stop_length} characters")
    return strings


def check_at_most(field: str, value: int, limit: int, setting: str) -> int:
    """``value``, held against a setting.

    Raises:
        InvalidRequest: it is larger.
    """
    if value > limit:
        raise InvalidRequest(field, value, f"at most {setting} ({limit})")
    return value


def read_logit_bias(bias: Mapping[str, float] | None) -> dict[int, float]:
    """JSON's string keys as token ids.

    Raises:
        InvalidRequest: a key is no token id.
    """
    ids: dict[int, float] = {}
    for key, value in (bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InvalidRequest("logit_bias", key, "keyed by token ids")
        ids[int(key)] = value
    return ids
