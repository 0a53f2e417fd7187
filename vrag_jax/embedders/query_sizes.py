"""Queries of all sizes for which an embedder compiles a program of its own."""

import itertools
import time
from collections.abc import Iterator

from vrag_jax.embedders.interface import Embedder
from vrag_jax.embedders.length_batches import SHORTEST
from vrag_jax.models.common.patch_packing import bucket_size


def query_sizes(embedder: Embedder, most_tokens: int, most_queries: int, deadline: float
                ) -> Iterator[tuple[int, str]]:
    """Yields numbers of queries, and a query each: all that are padded to different sizes.

    Small ones come first. Until the deadline, lengths that the model cuts to others are left out.

    Args:
      embedder: is asked how many tokens it reads of a query.
      most_tokens: of a query.
      most_queries: that come together.
      deadline: by `time.monotonic`.
    """
    one, two = _tokens(embedder, 'a'), _tokens(embedder, 'a a')
    around = 2 * one - two  # Tokens of a query beside those of its words.
    lengths = [SHORTEST]
    while lengths[-1] < most_tokens:
        lengths.append(bucket_size(lengths[-1] + 1))
    queries, longest = {}, 0
    for length in lengths:
        query = ' '.join('a' * max(1, (length - around) // max(two - one, 1)))
        tokens = _tokens(embedder, query) if time.monotonic() < deadline else length
        if tokens > longest:  # Models read only so much.
            queries[length] = query
            longest = tokens
    counts = [1 << power for power in range(most_queries.bit_length())]
    for length, count in sorted(itertools.product(queries, counts), key=lambda s: s[0] * s[1]):
        yield count, queries[length]


def _tokens(embedder: Embedder, query: str) -> int:
    """Returns how many tokens a model reads of a query."""
    before = embedder.tokens_read
    embedder.embed_queries([query])
    return embedder.tokens_read - before
