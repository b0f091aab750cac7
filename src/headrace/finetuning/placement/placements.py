"""The ways in which a run is spread over devices."""

from __future__ import annotations

from enum import StrEnum


class Placement(StrEnum):
    """How a run is spread over devices."""

    SINGLE = "single"
    DDP = "ddp"
    FSDP2 = "fsdp2"
    ZERO3 = "zero3"

    @property
    def shards(self) -> bool:
        """Each device holds a part of the weights and gathers a layer when it needs it."""
        return self in (Placement.FSDP2, Placement.ZERO3)
