"""A base model's tensors in the dtype that training wants, read one at a time."""

from __future__ import annotations

import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.expected_tensors import EMBEDDING, HEAD
from headrace.link.errors import ConfigurationError
from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.loading.tensor_reader import TensorReader
from headrace.modeling.operations import GGUFBlocks


class BaseWeights:
    """Reads from the mapped files of a checkpoint, safetensors or GGUF.

    The files' pages belong to the system's cache, which all processes share: reading takes no
    memory of its own but for a tensor that has to change its dtype.

    Args:
        checkpoint: The base model.
        device: Where the tensors are wanted.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._reader = TensorReader(checkpoint.tensors, device)

    def read(self, name: str, dtype: torch.dtype, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or consecutive rows of it, in ``dtype``; treat it as read-only.

        Args:
            name: Hugging Face's; a tied head is the embedding.
            dtype: A float dtype.
            rows: ``None``: all.

        Raises:
            ConfigurationError: no such tensor, an unknown type, or NaN in it.
        """
        if name == HEAD and self._checkpoint.config.tie_word_embeddings:
            name = EMBEDDING
        if name not in self._checkpoint.tensors:
            raise ConfigurationError(f"{self._checkpoint.path} has no tensor {name}")
        tensor = self._reader.read(name, rows)
        if isinstance(tensor, GGUFBlocks):
            return dequantize(tensor, dtype)
        return tensor.to(dtype)

    def read_whole(self, name: str, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor that must have a size.

        Raises:
            ConfigurationError: as for ``read``, or a tensor of another shape.
        """
        tensor = self.read(name, dtype)
        if tuple(tensor.shape) != size:
            raise ConfigurationError(
                f"{self._checkpoint.path}: {name} must be {size}, got {tuple(tensor.shape)}"
            )
        return tensor
