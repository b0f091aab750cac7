"""Where one tensor of a checkpoint lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor, under its Hugging Face name, before any of its bytes are read.

    Attributes:
        name: Hugging Face's name, such as ``model.layers.0.self_attn.q_proj.weight``.
        path: File that holds the bytes.
        offset: First byte in the file.
        nbytes: Number of bytes.
        dtype: safetensors dtype (``BF16``, ``F16``, ``F32`` ...) or GGUF type (``Q4_1`` ...).
        shape: Slowest dimension first: (N, K) for matrices, (N,) for vectors.
        permuted_heads: Number of heads whose rows GGUF's llama architecture stores pairwise
            interleaved, else ``None``. ``row_order`` undoes it.
    """

    name: str
    path: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    permuted_heads: int | None = None

    def row_order(self) -> list[int] | None:
        """For each row in Hugging Face's order the row of the file, or ``None``: as they lie.

        Hugging Face rotates dimension i of a head with dimension i + d/2; the file holds the two
        in neighbouring rows 2i and 2i + 1. Whole rows move, so quantized blocks stay intact.
        """
        if self.permuted_heads is None:
            return None
        width = self.shape[0] // self.permuted_heads
        half = width // 2
        return [
            head * width + 2 * pair + side
            for head in range(self.permuted_heads)
            for side in (0, 1)
            for pair in range(half)
        ]
