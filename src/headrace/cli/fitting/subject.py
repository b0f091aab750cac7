"""Which model is asked about: a directory, a file, a built-in shape or a hub id."""

from __future__ import annotations

from pathlib import Path

import msgspec

from headrace.checkpoint import hub
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.shapes import find_shape, shape_names
from headrace.checkpoint.sizes import stored_bytes
from headrace.link.errors import ConfigurationError


class Subject(msgspec.Struct, frozen=True):
    """A model of which at least the configuration is known.

    Attributes:
        name: As the user named it.
        stored_bytes: Of its weights as a file packs them; ``None``: they are not at hand.
    """

    name: str
    config: ModelConfig
    stored_bytes: int | None = None


def find_subject(model: str, *, packed: bool = False) -> Subject:
    """Read the configuration that ``model`` names.

    What exists on disk comes first, then the built-in shapes, then the hub.

    Args:
        model: What the user wrote.
        packed: Also add up the weights as the file packs them.

    Raises:
        ConfigurationError: no such model, saying which shapes there are; weights that are not
            there though they are asked for; an unusable configuration.
    """
    known = None if Path(model).expanduser().exists() else find_shape(model)
    if known is not None:
        if packed:
            raise ConfigurationError(
                f"--packed-weights needs a file, `{model}` is a shape: name a format by --quantize"
            )
        return Subject(model, known)
    hub_id = "/" in model and hub.is_hub_id(model)
    if not hub_id and not Path(model).expanduser().exists():
        raise ConfigurationError(
            f"model `{model}`: no such file, directory or built-in shape; "
            f"shapes are {', '.join(shape_names())}"
        )
    checkpoint = resolve(model)
    config = checkpoint.config
    return Subject(model, config, stored_bytes(config, checkpoint.tensors) if packed else None)


def is_gguf(model: str) -> bool:
    """Whether ``model`` names a GGUF file on disk, which a CPU serves as it packs its weights."""
    return Path(model).suffix == ".gguf" and Path(model).expanduser().is_file()
