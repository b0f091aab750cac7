"""Whether the libraries of the extra ``finetune`` are there, asked without importing them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from headrace.link.errors import ConfigurationError

_ALWAYS = (
    *("accelerate", "datasets", "matplotlib", "peft", "pyarrow"),
    *("tensorboard", "transformers", "trl"),
)


def check_installed(more: Iterable[str] = ()) -> None:
    """Refuse to go on where a library is missing.

    Args:
        more: Names of further modules that this run needs.

    Raises:
        ConfigurationError: names them and how to get them.
    """
    missing = [name for name in (*_ALWAYS, *more) if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"fine-tuning needs {', '.join(missing)}: pip install 'headrace[finetune]'"
        )
