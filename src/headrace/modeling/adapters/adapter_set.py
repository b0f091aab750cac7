"""The loaded adapters of a model, laid out layer by layer for its stacked linears."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headrace.kernels.low_rank.stack import LowRankStack

NO_ADAPTER = -1


@dataclass(frozen=True, slots=True)
class LayerUpdates:
    """What adapters add to the linears of one block; ``None``: none changes that linear."""

    qkv: LowRankStack | None = None
    output: LowRankStack | None = None
    gate_up: LowRankStack | None = None
    down: LowRankStack | None = None

    def stacks(self) -> Iterator[LowRankStack]:
        """Those that exist."""
        for stack in (self.qkv, self.output, self.gate_up, self.down):
            if stack is not None:
                yield stack


NO_UPDATES = LayerUpdates()


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """All adapters that a server holds; an adapter's index is its place in ``names``."""

    names: tuple[str, ...]
    layers: tuple[LayerUpdates, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes held on the device."""
        return sum(stack.num_bytes for layer in self.layers for stack in layer.stacks())
