"""A checkpoint's tensors as torch sees them: views of memory-mapped files, checked for NaN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from headrace.checkpoint.tensors import TensorEntry
from headrace.link.errors import ConfigurationError
from headrace.modeling.loading.gguf_dequantize import BLOCK_BYTES, BLOCK_SIZE, scales
from headrace.modeling.operations import GGUFBlocks, WeightPart

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class TensorReader:
    """Reads tensors by their Hugging Face name onto a device.

    Args:
        tensors: A checkpoint's directory of tensors.
        device: Where they are wanted.
    """

    def __init__(self, tensors: Mapping[str, TensorEntry], device: torch.device) -> None:
        self._tensors = tensors
        self._device = device
        self._files: dict[Path, torch.Tensor] = {}

    def read(self, name: str, rows: slice | None = None) -> WeightPart:
        """The tensor in its stored type, rows in Hugging Face's order.

        On a CPU it may share memory with the file: treat it as read-only.

        Args:
            name: Hugging Face's.
            rows: Consecutive ones of a tensor, the only ones to be read; ``None``: all.

        Raises:
            ConfigurationError: Unsupported dtype, or a NaN or infinity among its numbers.
        """
        entry = self._tensors[name]
        if entry.dtype in BLOCK_BYTES:
            return self._blocks(entry, rows)
        if entry.dtype not in _DTYPES:
            raise ConfigurationError(
                f"tensor `{name}`: dtype {entry.dtype} is not supported; supported are "
                f"{', '.join((*_DTYPES, *BLOCK_BYTES))}"
            )
        tensor = self._bytes(entry).view(_DTYPES[entry.dtype]).view(entry.shape)
        tensor = _chosen(tensor, entry, rows).to(self._device)
        _check_finite(name, tensor)
        return tensor

    def read_vector(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """An unquantized tensor, such as a norm or a bias, copied to ``dtype``."""
        tensor = self.read(name)
        if isinstance(tensor, GGUFBlocks):
            raise ConfigurationError(f"tensor `{name}`: a vector cannot be of type {tensor.kind}")
        return tensor.to(dtype, copy=True)

    def _blocks(self, entry: TensorEntry, rows: slice | None) -> GGUFBlocks:
        height, columns = entry.shape
        if columns % BLOCK_SIZE[entry.dtype]:
            raise ConfigurationError(
                f"tensor `{entry.name}`: {columns} columns are no multiple of the "
                f"{BLOCK_SIZE[entry.dtype]} of a {entry.dtype} block"
            )
        data = _chosen(self._bytes(entry).view(height, -1), entry, rows).to(self._device)
        blocks = GGUFBlocks(data, entry.dtype, (data.shape[0], columns))
        _check_finite(entry.name, scales(blocks))
        return blocks

    def _bytes(self, entry: TensorEntry) -> torch.Tensor:
        whole = self._files.get(entry.path)
        if whole is None:
            size = entry.path.stat().st_size
            # A private mapping: pages are shared with the file cache until written, which never
            # happens; torch has no read-only tensors.
            whole = torch.from_file(str(entry.path), shared=False, size=size, dtype=torch.uint8)
            self._files[entry.path] = whole
        data = whole[entry.offset : entry.offset + entry.nbytes]
        # safetensors promises no alignment; torch needs that of the element.
        return data if entry.offset % 16 == 0 else data.clone()


def _chosen(tensor: torch.Tensor, entry: TensorEntry, rows: slice | None) -> torch.Tensor:
    order = entry.row_order()
    if order is None:
        return tensor if rows is None else tensor[rows]
    return tensor[torch.tensor(order if rows is None else order[rows])]


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    # A sum is not finite if a summand is not; it can overflow on its own only for absurd weights,
    # so that the exact check is seldom needed.
    if tensor.sum(dtype=torch.float32).isfinite():
        return
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise ConfigurationError(f"tensor `{name}`: {bad} of its numbers are NaN or infinite")
