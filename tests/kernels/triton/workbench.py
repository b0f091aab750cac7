"""What comparisons of kernels with their references share: fresh inputs, poisoned outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from headrace.kernels.triton_launch import GpuTraits

Case = tuple[str, Callable[[], float]]
INTERPRETED = GpuTraits(
    multiprocessors=2, shared_memory=65536, dependent_launch=False, wide_matrix_unit=False
)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """‖out − expected‖ / ‖expected‖; not a number anywhere makes it not a number."""
    out, expected = out.double(), expected.double()
    return float((out - expected).norm() / expected.norm().clamp_min(1e-30))


class Workbench:
    """Tensors of one device and dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype, traits: GpuTraits) -> None:
        self.device = device
        self.dtype = dtype
        self.traits = traits

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        values = torch.randn(*shape, device=self.device)
        return values.to(dtype or self.dtype)

    def poisoned(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.full(shape, float("nan"), device=self.device, dtype=dtype or self.dtype)

    def integers(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def caches(
        self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as the GPU backend lays them out: heads before offsets."""
        keys, values = (
            self.random(num_blocks, kv_heads, block_size, head_dim).permute(0, 2, 1, 3)
            for _ in range(2)
        )
        return keys, values

    @property
    def name(self) -> str:
        """The dtype's, as cases are called."""
        return str(self.dtype).removeprefix("torch.")
