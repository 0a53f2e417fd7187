"""Which pages of the key-value pool belong to which sequence: allocation on the host."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(eq=False)
class CachedSequence:
    """A sequence's place in the pool.

    Attributes:
      shard: the part of the pool where its pages lie.
      pages: its pages in order.
      length: tokens whose keys and values are cached.
    """

    shard: int
    pages: list[int] = dataclasses.field(default_factory=list)
    length: int = 0


class PageTable:
    """Hands out pages of a pool and counts who uses them.

    Pages are shared between sequences with the same beginning: a page is written by
    its first owner only, before it is shared.

    Args:
      shards: parts of the pool.
      pages: pages of each part.
      page_size: tokens a page.
    """

    def __init__(self, shards: int, pages: int, page_size: int):
        self.pages = pages
        self.page_size = page_size
        self._free = [list(range(pages - 1, -1, -1)) for _ in range(shards)]
        self._users = np.zeros((shards, pages), np.int64)

    def free(self, shard: int) -> int:
        """Pages of a part that nobody uses."""
        return len(self._free[shard])

    def needed(self, tokens: int) -> int:
        """Pages that so many tokens take."""
        return math.ceil(tokens / self.page_size)

    def reserve(self, sequence: CachedSequence, tokens: int) -> bool:
        """Gives a sequence pages for `tokens` more tokens; False, and none, if too few are free."""
        missing = self.needed(sequence.length + tokens) - len(sequence.pages)
        if missing > len(self._free[sequence.shard]):
            return False
        for _ in range(missing):
            sequence.pages.append(self._take(sequence.shard))
        return True

    def fork(self, sequence: CachedSequence, count: int, length: int
             ) -> list[CachedSequence] | None:
        """Returns sequences that begin with the first tokens of this one.

        Pages that these fill are shared. One that they fill in part is not: each copy gets
        a page of its own, into which the caller copies it.

        Args:
          sequence: what to copy.
          count: how many copies.
          length: tokens of it, at most as many as are cached.

        Returns:
          The new sequences, or None, and no page taken, where too few are free.
        """
        if length > sequence.length:
            raise ValueError(f'{length} tokens of a sequence that has {sequence.length} cached')
        whole, rest = divmod(length, self.page_size)
        shard = sequence.shard
        if rest and len(self._free[shard]) < count:
            return None
        copies = []
        for _ in range(count):
            copy = CachedSequence(shard, sequence.pages[:whole], length)
            self._users[shard, copy.pages] += 1
            if rest:
                copy.pages.append(self._take(shard))
            copies.append(copy)
        return copies

    def _take(self, shard: int) -> int:
        page = self._free[shard].pop()
        self._users[shard, page] = 1
        return page

    def release(self, sequence: CachedSequence) -> None:
        """Gives back the pages of a sequence; it is empty then."""
        for page in sequence.pages:
            self._users[sequence.shard, page] -= 1
            if not self._users[sequence.shard, page]:
                self._free[sequence.shard].append(page)
        sequence.pages, sequence.length = [], 0

    def places(self, sequence: CachedSequence, count: int) -> np.ndarray:
        """Returns where the next `count` tokens lie, `[count]` int32 `page * page_size + offset`.

        Tokens past the reserved pages get a place past the pool.
        """
        index = sequence.length + np.arange(count)
        pages = np.append(sequence.pages, self.pages).astype(np.int64)
        page = pages[np.minimum(index // self.page_size, len(sequence.pages))]
        past_end = index // self.page_size >= len(sequence.pages)
        place = np.where(past_end, self.pages * self.page_size,
                         page * self.page_size + index % self.page_size)
        return place.astype(np.int32)
