"""headrace serves and fine-tunes open large language models on the machine in front of you."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.link.sampling import SamplingParams

if TYPE_CHECKING:
    from headrace.engine.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    # The transport process imports this package too, and must never load torch.
    if name == "LLM":
        return import_module("headrace.engine.llm").LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
