"""Warm-up of a service: compiles its embedders' programs in all sizes before the first request."""

import time
from collections.abc import Iterator

from vrag_jax.embedders.interface import Embedder
from vrag_jax.embedders.query_sizes import query_sizes
from vrag_jax.retrieval.retriever import Retriever
from vrag_jax.serving.service_config import WarmUpConfig


def warm_up(retriever: Retriever, k: int, config: WarmUpConfig) -> str:
    """Searches for queries of all lengths, one and many at a time, small ones first.

    Programs are compiled for lengths and numbers of queries that are rounded up, so every
    later query of that size finds its program. While it goes on it prints what it compiles.

    Args:
      retriever: what the service searches with.
      k: hits a query.
      config: how much.

    Returns:
      A line that says what was done, and what was not.
    """
    started = time.monotonic()
    deadline = started + config.seconds
    missing = 0

    def sizes(embedder: Embedder) -> Iterator[tuple[int, str]]:
        nonlocal missing
        print(f'warming up: {embedder.kind} is compiled for up to {config.queries} queries of up '
              f'to {config.tokens} tokens, in at most {config.seconds:g} s (serving.warm_up)',
              flush=True)
        for size in query_sizes(embedder, config.tokens, config.queries, deadline):
            if time.monotonic() > deadline:
                missing += 1
            else:
                yield size

    retriever.search(['warm up'], k)  # Reads what is mapped, too.
    retriever.warm_up(sizes, k)
    told = f'warmed up in {time.monotonic() - started:.1f} s'
    if missing:
        told += (f': {missing} sizes of queries are left, whose first waits for the compiler '
                 '(serving.warm_up.seconds)')
    return told
