"""Weights drawn from a seed: the shape of a real model where its files are absent."""

from __future__ import annotations

import torch

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.expected_tensors import expected_tensors

STANDARD_DEVIATION = 0.02


class RandomReader:
    """Stands in for ``TensorReader``: normal(0, 0.02) matrices and biases, norms of one.

    Args:
        config: The architecture whose tensors are wanted.
        seed: Same seed, same device type, same order of reading: same weights.
        device: Where the numbers are generated.
        dtype: Of the matrices.
    """

    def __init__(
        self, config: ModelConfig, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._shapes = expected_tensors(config)
        self._device = device
        self._dtype = dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    def read(self, name: str) -> torch.Tensor:
        """The tensor of this name."""
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        values = torch.empty(shape, dtype=self._dtype, device=self._device)
        return values.normal_(0.0, STANDARD_DEVIATION, generator=self._generator)

    def read_vector(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The tensor of this name in ``dtype``."""
        return self.read(name).to(dtype)
