"""Allocation and reference counts of KV blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from headrace.scheduling.errors import IntegrityError
from headrace.scheduling.prefix_cache import PrefixCache


class BlockManager:
    """Blocks 0 to ``num_blocks - 1``: each is free, idle in the prefix cache, or held.

    Args:
        num_blocks: Blocks of the KV cache.
        cache: Keeps the content of blocks that nobody holds until they are needed.
    """

    def __init__(self, num_blocks: int, cache: PrefixCache) -> None:
        self.num_blocks = num_blocks
        self._cache = cache
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now, idle cached ones included."""
        return len(self._free) + self._cache.num_idle

    def allocate(self) -> int:
        """A block for one holder; the oldest idle cached block if none is free.

        Raises:
            KeyError: No block is available.
        """
        block = self._free.pop() if self._free else self._cache.evict()
        self._holders[block] = 1
        return block

    def share(self, blocks: list[int]) -> None:
        """One more holder for each of these cached blocks."""
        holders = self._holders
        for block in blocks:
            if holders[block] == 0:
                self._cache.wake(block)
            holders[block] += 1

    def release(self, blocks: list[int]) -> None:
        """One holder fewer for each block of a table; unheld ones become idle or free.

        The end of the table is released first, so that a prefix outlives its continuations.
        """
        holders = self._holders
        for block in reversed(blocks):
            holders[block] -= 1
            if holders[block] == 0 and not self._cache.rest(block):
                self._free.append(block)

    def num_held_alone(self, blocks: list[int]) -> int:
        """How many of the blocks nobody else holds."""
        holders = self._holders
        return sum(holders[block] == 1 for block in blocks)

    def num_idle_among(self, blocks: list[int]) -> int:
        """How many of the blocks nobody holds."""
        return sum(self._holders[block] == 0 for block in blocks)

    def flush_cache(self) -> int:
        """Forget every cached block that nobody holds; how many there were."""
        idle = self._cache.clear_idle()
        self._free.extend(idle)
        return len(idle)

    def check_integrity(self, tables: Iterable[list[int]]) -> None:
        """Every block is free, idle or held by exactly the given tables.

        Raises:
            IntegrityError: naming a block that contradicts.
        """
        held = Counter(block for table in tables for block in table)
        for block, holders in enumerate(self._holders):
            if holders != held[block]:
                raise IntegrityError(
                    f"block {block} counts {holders} holders, {held[block]} tables name it"
                )
        free = set(self._free)
        if len(free) != len(self._free):
            raise IntegrityError("a block is in the free list twice")
        for block in range(self.num_blocks):
            states = (block in free, self._cache.is_idle(block), held[block] > 0)
            if sum(states) != 1:
                raise IntegrityError(f"block {block} is (free, idle, held) = {states}")
        self._cache.check_integrity()
