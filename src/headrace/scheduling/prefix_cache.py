"""Which full blocks hold which prefix: chained hashes, and an LRU of those nobody uses now."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b

from headrace.scheduling.errors import IntegrityError

# 256 bits: a collision would show one user's context to another, so none may be constructible.
_DIGEST_SIZE = 32


def extend_hash_chain(
    hashes: list[bytes], tokens: array[int], num_blocks: int, block_size: int, salt: str
) -> None:
    """Lengthen ``hashes`` in place to the hashes of the first ``num_blocks`` blocks of ``tokens``.

    A block's hash covers the hash of the block before it and its own token ids; the first
    block's parent is the hash of the salt. Equal hashes mean equal tokens from position 0 on.
    """
    if len(hashes) >= num_blocks:
        return
    if hashes:
        parent = hashes[-1]
    else:
        parent = blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_SIZE).digest()
    for start in range(len(hashes) * block_size, num_blocks * block_size, block_size):
        content = parent + tokens[start : start + block_size].tobytes()
        parent = blake2b(content, digest_size=_DIGEST_SIZE).digest()
        hashes.append(parent)


class PrefixCache:
    """Index from a prefix hash to the block that holds its last tokens.

    A block is *idle* while no sequence holds it: its content stays until the block is needed,
    least recently used first.
    """

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        """Cached blocks that nobody holds."""
        return len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks with an entry, held or idle."""
        return len(self._hash_of)

    def lookup(self, hashes: list[bytes]) -> list[int]:
        """Blocks of the longest cached prefix of a hash chain, in order."""
        blocks: list[int] = []
        block_of = self._block_of
        for digest in hashes:
            block = block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def insert(self, digest: bytes, block: int) -> None:
        """Remember ``block`` under ``digest``, unless another block has the same content."""
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def is_idle(self, block: int) -> bool:
        """Whether ``block`` is cached and nobody holds it."""
        return block in self._idle

    def rest(self, block: int) -> bool:
        """Nobody holds ``block`` any more: make it idle; ``False`` if it has no entry."""
        if block not in self._hash_of:
            return False
        self._idle[block] = None
        return True

    def wake(self, block: int) -> None:
        """An idle block is held again."""
        del self._idle[block]

    def evict(self) -> int:
        """Drop the entry of the least recently used idle block; the block is then free.

        Raises:
            KeyError: There is none.
        """
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block

    def clear_idle(self) -> list[int]:
        """Drop the entries of all idle blocks and return the blocks."""
        return [self.evict() for _ in range(len(self._idle))]

    def check_integrity(self) -> None:
        """Both directions of the index agree, and idle blocks are in it.

        Raises:
            IntegrityError: naming a block that contradicts.
        """
        if len(self._block_of) != len(self._hash_of):
            raise IntegrityError("prefix cache: two hashes name one block")
        for digest, block in self._block_of.items():
            if self._hash_of.get(block) != digest:
                raise IntegrityError(f"prefix cache: block {block} has another hash than its entry")
        for block in self._idle:
            if block not in self._hash_of:
                raise IntegrityError(f"prefix cache: idle block {block} has no entry")
