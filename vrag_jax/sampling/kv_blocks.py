"""Which blocks of the key-value pool belong to which sequence: allocation on the host."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(eq=False)
class CachedSequence:
    """A sequence's place in the pool.

    Attributes:
      shard: the part of the pool where its blocks lie.
      blocks: its blocks in order.
      length: tokens whose keys and values are cached.
    """

    shard: int
    blocks: list[int] = dataclasses.field(default_factory=list)
    length: int = 0


class BlockTable:
    """Hands out blocks of a pool and counts who uses them.

    Blocks are shared between sequences with the same beginning: a block is written by
    its first owner only, before it is shared.

    Args:
      shards: parts of the pool.
      blocks: blocks of each part.
      block_size: tokens a block.
    """

    def __init__(self, shards: int, blocks: int, block_size: int):
        self.blocks = blocks
        self.block_size = block_size
        self._free = [list(range(blocks - 1, -1, -1)) for _ in range(shards)]
        self._users = np.zeros((shards, blocks), np.int64)

    def free(self, shard: int) -> int:
        """Blocks of a part that nobody uses."""
        return len(self._free[shard])

    def needed(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return math.ceil(tokens / self.block_size)

    def reserve(self, sequence: CachedSequence, tokens: int) -> bool:
        """Reserves blocks for `tokens` more tokens; False, and none, if too few are free."""
        missing = self.needed(sequence.length + tokens) - len(sequence.blocks)
        if missing > len(self._free[sequence.shard]):
            return False
        for _ in range(missing):
            sequence.blocks.append(self._take(sequence.shard))
        return True

    def fork(self, sequence: CachedSequence, count: int, length: int
             ) -> list[CachedSequence] | None:
        """Returns sequences that begin with the first tokens of this one.

        Blocks that these fill are shared. One that they fill in part is not: each copy gets
        a block of its own, into which the caller copies it.

        Args:
          sequence: what to copy.
          count: how many copies.
          length: tokens of it, at most as many as are cached.

        Returns:
          The new sequences, or None, and no block taken, where too few are free.
        """
        if length > sequence.length:
            raise ValueError(f'{length} tokens of a sequence that has {sequence.length} cached')
        whole, rest = divmod(length, self.block_size)
        shard = sequence.shard
        if rest and len(self._free[shard]) < count:
            return None
        copies = []
        for _ in range(count):
            copy = CachedSequence(shard, sequence.blocks[:whole], length)
            self._users[shard, copy.blocks] += 1
            if rest:
                copy.blocks.append(self._take(shard))
            copies.append(copy)
        return copies

    def _take(self, shard: int) -> int:
        block = self._free[shard].pop()
        self._users[shard, block] = 1
        return block

    def release(self, sequence: CachedSequence) -> None:
        """Gives back the blocks of a sequence; it is empty then."""
        for block in sequence.blocks:
            self._users[sequence.shard, block] -= 1
            if not self._users[sequence.shard, block]:
                self._free[sequence.shard].append(block)
        sequence.blocks, sequence.length = [], 0

    def places(self, sequence: CachedSequence, count: int) -> np.ndarray:
        """Returns where the next `count` tokens lie, `[count]` int32 `block * block_size + offset`.

        Tokens past the reserved blocks get a place past the pool.
        """
        index = sequence.length + np.arange(count)
        blocks = np.append(sequence.blocks, self.blocks).astype(np.int64)
        block = blocks[np.minimum(index // self.block_size, len(sequence.blocks))]
        past_end = index // self.block_size >= len(sequence.blocks)
        place = np.where(past_end, self.blocks * self.block_size,
                         block * self.block_size + index % self.block_size)
        return place.astype(np.int32)
