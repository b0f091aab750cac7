"""Which model is measured: any checkpoint, or a built-in shape with random weights."""

from __future__ import annotations

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.shapes import find_shape
from headrace.link.errors import ConfigurationError

SHORT_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Names of dtypes as records write them."""


def architecture(
    model: str | None, *, random_weights: bool
) -> tuple[ModelConfig, Checkpoint | None]:
    """The architecture, and the checkpoint unless ``model`` names a built-in shape.

    Args:
        model: Directory, GGUF file, hub id or built-in shape; ``None``: the built-in model.

    Raises:
        ConfigurationError: no such model, or a shape whose weights are not to be random.
    """
    shape = find_shape(model) if model else None
    if shape is None:
        checkpoint = resolve(model)
        return checkpoint.config, checkpoint
    if not random_weights:
        raise ConfigurationError(
            f"`{model}` is a built-in shape without weights: add --random-weights"
        )
    return shape, None


def weights_format(checkpoint: Checkpoint | None, dtype: str, *, packed: bool) -> str:
    """What records call the weights: ``dtype``, or the commonest packed format.

    Args:
        checkpoint: ``None``: a shape without files.
        packed: Quantized weights are computed with as they are packed.
    """
    if checkpoint is None or not packed:
        return dtype
    stored = [entry.dtype.lower() for entry in checkpoint.tensors.values()]
    quantized = [name for name in stored if name.startswith("q")]
    return max(set(quantized), key=quantized.count) if quantized else dtype
