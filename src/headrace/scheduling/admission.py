"""Which waiting request gets blocks next, and how far others may overtake it."""

from __future__ import annotations

from headrace.scheduling.block_manager import BlockManager
from headrace.scheduling.limits import SchedulerLimits
from headrace.scheduling.prefix_cache import PrefixCache, extend_hash_chain
from headrace.scheduling.sequence import Sequence
from headrace.scheduling.waiting_queue import WaitingQueue

# Share of all blocks that admission leaves to the growth of what already runs, at most.
_GROWTH_RESERVE_DIVISOR = 16


class Admission:
    """Takes sequences from the queue whose known tokens fit, in order of effective priority.

    Blocks for all known tokens are taken at once: a prompt half computed then never waits for
    a block and never causes a preemption. While others run, blocks are left over for their
    growth (one each, a sixteenth of the cache at most), so that what was just admitted is not
    preempted at once.

    A sequence that does not fit is looked past, ``max_bypasses`` times at most; after that
    nothing behind it is admitted, so that the blocks that come free add up for it.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        queue: WaitingQueue,
        blocks: BlockManager,
        cache: PrefixCache,
    ) -> None:
        self._limits = limits
        self._queue = queue
        self._blocks = blocks
        self._cache = cache
        self._looked_past: list[Sequence] = []

    def next_fitting(self, num_running: int) -> Sequence | None:
        """Take the next sequence that fits out of the queue and give it its blocks.

        Sequences looked past stay out of the queue until ``end_round``.
        """
        reserve = min(num_running, self._limits.num_blocks // _GROWTH_RESERVE_DIVISOR)
        if num_running:
            reserve = max(reserve, 1)
        spendable = self._blocks.num_available - reserve
        looked_past = self._looked_past
        while spendable > 0 and self._queue and len(looked_past) < self._limits.admission_lookahead:
            if looked_past and looked_past[-1].bypasses >= self._limits.max_bypasses:
                return None
            sequence = self._queue.pop()
            if self._take_blocks(sequence, spendable):
                for overtaken in looked_past:
                    overtaken.bypasses += 1
                return sequence
            looked_past.append(sequence)
        return None

    def end_round(self) -> None:
        """Return the sequences that were looked past to the queue."""
        for sequence in self._looked_past:
            self._queue.push(sequence)
        self._looked_past.clear()

    def _take_blocks(self, sequence: Sequence, spendable: int) -> bool:
        block_size = self._limits.block_size
        num_blocks = self._limits.blocks_for(len(sequence.tokens))
        cached = self._cached_prefix(sequence)
        num_new = num_blocks - len(cached)
        if num_new + self._blocks.num_idle_among(cached) > spendable:
            return False
        self._blocks.share(cached)
        sequence.block_table = cached
        sequence.block_table.extend(self._blocks.allocate() for _ in range(num_new))
        sequence.registered_blocks = num_cached = num_blocks - num_new
        sequence.num_computed = num_cached * block_size
        return True

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        if not self._limits.prefix_cache:
            return []
        if sequence.request.needs_prompt_logits and not sequence.num_generated:
            return []
        block_size = self._limits.block_size
        # The last token is always computed, since its logits are wanted.
        num_blocks = (len(sequence.tokens) - 1) // block_size
        hashes = sequence.block_hashes
        salt = sequence.request.prefix_salt
        # Hash one block first: most prompts that share nothing differ already there.
        extend_hash_chain(hashes, sequence.tokens, min(1, num_blocks), block_size, salt)
        if not self._cache.lookup(hashes[:1]):
            return []
        extend_hash_chain(hashes, sequence.tokens, num_blocks, block_size, salt)
        return self._cache.lookup(hashes[:num_blocks])
