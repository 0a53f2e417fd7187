"""Iterates over the token vectors of pages: read from a store, pooled, or turned into queries."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vrag_jax.embedders.interface import Embedder, Grid
from vrag_jax.retrieval.late_interaction.token_store import (
    TokenConfig,
    TokenStore,
    let_go,
    pool_grid,
)

_LET_GO = 256  # Pages.
_NOISE = 0.75  # Norm of what is added to unit tokens to make a query to measure recall with.


class StorePages(Sequence[np.ndarray]):
    """Tokens of a store's pages from row `start` on, read one by one."""

    def __init__(self, store: TokenStore, start: int = 0):
        self._store, self._start = store, start

    def __len__(self) -> int:
        return len(self._store) - self._start

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._store.page(self._start + row)


def pools(embedder: Embedder, config: TokenConfig) -> bool:
    """Whether an embedder's tokens are pooled: those of images are."""
    return config.pooling > 1 and embedder.reads == 'image'


def pooled_pages(pages: Sequence[np.ndarray], embedder: Embedder, config: TokenConfig,
                 grids: Sequence[Grid] | None) -> Iterator[np.ndarray]:
    """Yields each page's `[T, D]` tokens as they are kept.

    Raises:
      ValueError: if they are to be pooled and there is not one grid a page.
    """
    pooling = pools(embedder, config)
    if pooling and (grids is None or len(grids) != len(pages)):
        raise ValueError('pooling needs the grid of each page (`grids`)')
    for number, page in enumerate(pages):
        if number % _LET_GO == _LET_GO - 1:
            let_go(page)  # A corpus that is memory-mapped would come to be resident.
        if pooling and grids is not None:
            yield pool_grid(np.asarray(page, np.float32), *grids[number], config.pooling)
        else:
            yield page


def perturbed_queries(pages: Sequence[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """Returns `count` queries at most, each of 20 tokens of a page with noise."""
    rng = np.random.default_rng(seed)
    queries = []
    for row in rng.choice(len(pages), min(count, len(pages)), replace=False):
        page = pages[row]
        tokens = page[rng.permutation(len(page))[:20]]
        noise = rng.standard_normal(tokens.shape, np.float32)
        tokens = tokens + noise * np.float32(_NOISE / np.sqrt(tokens.shape[1]))
        queries.append(tokens / np.linalg.norm(tokens, axis=1, keepdims=True))
    return queries
