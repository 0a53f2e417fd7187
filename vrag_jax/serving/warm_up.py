"""What a service compiles before anybody asks: the programs of its embedders, in all sizes."""

import itertools
import time
from collections.abc import Iterator

from vrag_jax.models.common.packing import bucket_size
from vrag_jax.retrieval.embedding import Embedder
from vrag_jax.retrieval.fusion import HybridRetriever
from vrag_jax.retrieval.retriever import Retriever
from vrag_jax.serving.config import WarmUpConfig

_SHORTEST = 16  # Tokens that queries are padded to at least.


def warm_up(retriever: Retriever, k: int, config: WarmUpConfig) -> str:
    """Searches for queries of all lengths, one and many at a time, small ones first.

    Programs are compiled for lengths and numbers of queries that are rounded up, so every
    later query of that size finds its program.

    Args:
      retriever: what the service searches with.
      k: hits a query.
      config: how much.

    Returns:
      A line that says what was done, and what was not.
    """
    started = time.monotonic()
    deadline = started + config.seconds
    retriever.search(['warm up'], k)  # Reads what is mapped, too.
    parts = retriever.retrievers if isinstance(retriever, HybridRetriever) else [retriever]
    missing = 0
    for part in parts:
        embedder = _embedder(part)
        if embedder is None:
            continue
        for count, query in _sizes(embedder, config, deadline):
            if time.monotonic() > deadline:
                missing += 1
            else:
                part.search([query] * count, k)
    told = f'warmed up in {time.monotonic() - started:.1f} s'
    if missing:
        told += (f': {missing} sizes of queries are left, whose first waits for the compiler '
                 '(serving.warm_up.seconds)')
    return told


def _embedder(part: Retriever) -> Embedder | None:
    """Returns the model that a retriever asks, None for one that looks at words alone."""
    embedder = getattr(part, 'embedder', None) or getattr(part, 'encoder', None)
    return embedder if hasattr(embedder, 'embed_queries') else None


def _sizes(embedder: Embedder, config: WarmUpConfig, deadline: float
           ) -> Iterator[tuple[int, str]]:
    """Yields numbers of queries, and a query each: all that are padded to different sizes.

    Until the deadline lengths that the model cuts to others are left out.
    """
    one, two = _tokens(embedder, 'a'), _tokens(embedder, 'a a')
    around = 2 * one - two  # Tokens of a query beside those of its words.
    lengths = [_SHORTEST]
    while lengths[-1] < config.tokens:
        lengths.append(bucket_size(lengths[-1] + 1))
    queries, longest = {}, 0
    for length in lengths:
        query = ' '.join('a' * max(1, (length - around) // max(two - one, 1)))
        tokens = _tokens(embedder, query) if time.monotonic() < deadline else length
        if tokens > longest:  # Models read only so much.
            queries[length] = query
            longest = tokens
    counts = [1 << power for power in range(config.queries.bit_length())]
    for length, count in sorted(itertools.product(queries, counts), key=lambda s: s[0] * s[1]):
        yield count, queries[length]


def _tokens(embedder: Embedder, query: str) -> int:
    """Returns how many tokens a model reads of a query."""
    before = embedder.tokens_read
    embedder.embed_queries([query])
    return embedder.tokens_read - before
