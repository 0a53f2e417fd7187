"""Sequences of any length as batches of a few static shapes."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from vrag_jax.models.common.patch_packing import bucket_size

SHORTEST = 16  # Of a row: queries are about so long.
_ROW_STEP = 4  # A batch that is not full has 1/4, 1/16, ... of the rows.


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Which sequences run together.

    Attributes:
      items: their indices; fewer than `rows`, if the batch is not full.
      rows: of the array.
      length: tokens of a row.
    """

    items: tuple[int, ...]
    rows: int
    length: int

    def pad(self, sequences: Sequence[np.ndarray], fill: int = 0) -> np.ndarray:
        """Returns `[rows, length]` int32 of the batch's sequences, padded on the right."""
        out = np.full((self.rows, self.length), fill, np.int32)
        for row, item in enumerate(self.items):
            out[row, : len(sequences[item])] = sequences[item]
        return out

    def mask(self, lengths: Sequence[int]) -> np.ndarray:
        """Returns `[rows, length]` bool, which tokens are real."""
        real = np.zeros(self.rows, np.int32)
        real[: len(self.items)] = [lengths[item] for item in self.items]
        return np.arange(self.length) < real[:, None]


def plan(
    lengths: Sequence[int], batch_tokens: int, multiple: int = 1, longest: int | None = None
) -> Iterator[TokenBatch]:
    """Puts sequences of about the same length together.

    The longest go first, and each batch takes as many as there is room for, so that one
    batch of a call, the last, is not full. Lengths are rounded up to 2^n or 1.5 * 2^n.

    Args:
      lengths: tokens of each sequence, at least 1.
      batch_tokens: most tokens of a batch, padding included, unless one row alone has more.
      multiple: rows are a multiple of it: the devices that rows are spread over.
      longest: most tokens of a row, that a bucket must not exceed.

    Yields:
      Batches that hold each sequence once.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    at = 0
    while at < len(order):
        length = bucket_size(max(lengths[order[at]], SHORTEST))
        if longest is not None:
            length = min(length, longest)
        rows = max(batch_tokens // length // multiple, 1) * multiple
        items = tuple(order[at : at + rows])
        while (fewer := _round_up(rows / _ROW_STEP, multiple)) in range(len(items), rows):
            rows = fewer
        yield TokenBatch(items, rows, length)
        at += len(items)


def _round_up(number: float, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple
