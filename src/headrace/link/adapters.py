"""Names of adapters: what they may look like, and the refusal of one that is not served."""

from __future__ import annotations

import re
from collections.abc import Collection

from headrace.link.errors import ConfigurationError, InvalidRequest

_NAME = re.compile(r"[\w./:@+~-]{1,256}")

PLACEHOLDERS = ("tgi", "dummy")
"""What clients written for TGI send as ``model`` in place of a name: its documentation's, and that
of ``huggingface_hub.InferenceClient(base_url=...)``."""

NAME_RULE = "1 to 256 letters, digits and . _ - / : @ + ~"


def is_adapter_name(name: str) -> bool:
    """Whether ``name`` may name an adapter; see ``NAME_RULE``."""
    return _NAME.fullmatch(name) is not None


def check_adapter(field: str, name: str | None, served: Collection[str]) -> None:
    """Refuse an adapter that is not served; ``None`` asks for the base model.

    Raises:
        InvalidRequest: Names the adapters that are.
    """
    if name is None or name in served:
        return
    known = ", ".join(f"`{one}`" for one in served)
    bound = f"one of the served adapters {known}" if known else "absent: no adapters are served"
    raise InvalidRequest(field, name, bound)


def check_names(adapters: Collection[str], model: str) -> None:
    """Refuse names of adapters that a client could not tell from the model's.

    Raises:
        ConfigurationError: Names the first.
    """
    for name in adapters:
        if not is_adapter_name(name):
            raise ConfigurationError(f"an adapter's name must be {NAME_RULE}, got {name!r}")
        if name in (model, *PLACEHOLDERS):
            raise ConfigurationError(
                f"adapter `{name}`: this name means the base model; take another"
            )
