"""One kernel at one size: the bytes that it must move and the operations that it must do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelCase:
    """A size at which a kernel is timed.

    Attributes:
        kernel: What is computed, such as ``qkv`` or ``attention``.
        tokens: T, all new tokens of the step.
        sequences: S.
        context: Length of each sequence with its new tokens.
        num_bytes: That must cross the memory bus: each operand and result once.
        operations: Multiplications and additions.
    """

    kernel: str
    tokens: int
    sequences: int
    context: int
    num_bytes: int
    operations: int

    def floor_seconds(self, bytes_per_second: float, operations_per_second: float) -> float:
        """No kernel is faster: the slower of memory and arithmetic (the roofline)."""
        return max(self.num_bytes / bytes_per_second, self.operations / operations_per_second)
