"""Exact MaxSim of queries with pages of a token store, in JAX, in static shapes."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from vrag_jax.retrieval.shapes import bucket
from vrag_jax.retrieval.token_store import TokenStore

_PRODUCTS = 1 << 24  # Products of tokens in one call, at most: 64 MiB.
_QUERY_TOKENS = 512  # In one call, where all pages are scored.
_IN_FLIGHT = 4  # Calls whose inputs are in memory at a time.


def maxsim(store: TokenStore, queries: Sequence[np.ndarray],
           rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scores some pages for each query: sum over its tokens of the page's best product.

    On a CPU in float32. On accelerators, products of bfloat16 are summed in float32.

    Args:
      store: tokens of pages.
      queries: [T, D] float32 each, T > 0.
      rows: of each query, the pages that are scored, int [P].

    Returns:
      Of each query, scores [P] float32.
    """
    pending: list[jax.Array] = []
    scores: list[np.ndarray] = []
    for query, wanted in zip(queries, rows, strict=True):
        padded = _padded([query])
        for blocks, pages, count in _chunks(store, wanted, len(padded)):
            pending.append(_score(padded, blocks, pages, pages=bucket(count), dims=store.dims))
            if len(pending) > _IN_FLIGHT:
                pending[-_IN_FLIGHT].block_until_ready()
    done = iter(pending)
    for query, wanted in zip(queries, rows, strict=True):
        parts = [np.asarray(next(done))[:count].sum(axis=1)
                 for count in _chunk_sizes(store, wanted, bucket(len(query), least=8))]
        scores.append(np.concatenate([np.zeros(0, np.float32), *parts]))
    return scores


def maxsim_all(store: TokenStore, queries: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Scores the same pages for every query, as `maxsim`.

    Args:
      store: tokens of pages.
      queries: [T, D] float32 each, T > 0.
      rows: the pages that are scored, int [P].

    Returns:
      [queries, P] float32.
    """
    out = np.zeros((len(queries), len(rows)), np.float32)
    start = 0
    while start < len(queries):
        stop, tokens = start, 0
        while stop < len(queries) and (stop == start
                                       or tokens + len(queries[stop]) <= _QUERY_TOKENS):
            tokens += len(queries[stop])
            stop += 1
        group = queries[start:stop]
        padded = _padded(group)
        starts = np.cumsum([0, *(len(query) for query in group[:-1])])
        position = 0
        for blocks, pages, count in _chunks(store, rows, len(padded)):
            best = np.asarray(_score(padded, blocks, pages, pages=bucket(count), dims=store.dims))
            sums = np.add.reduceat(best[:count, :tokens], starts, axis=1)
            out[start:stop, position:position + count] = sums.T
            position += count
        start = stop
    return out


def _padded(queries: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the tokens of queries, and zeros up to a static size, [T, D] float32."""
    tokens = np.concatenate(queries).astype(np.float32)
    padded = np.zeros((bucket(len(tokens), least=8), tokens.shape[1]), np.float32)
    padded[:len(tokens)] = tokens
    return padded


def _chunk_sizes(store: TokenStore, rows: np.ndarray, query_tokens: int) -> list[int]:
    """Returns how many pages go into each call."""
    most = max(1, _PRODUCTS // (query_tokens * store.config.block))
    ends = np.cumsum(store.table[rows, 2])
    sizes, position = [], 0
    while position < len(rows):
        before = ends[position - 1] if position else 0
        size = max(1, int(np.searchsorted(ends, before + most, side='right')) - position)
        sizes.append(size)
        position += size
    return sizes


def _chunks(store: TokenStore, rows: np.ndarray, query_tokens: int
            ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields blocks, the page in the chunk that each belongs to, and the number of pages."""
    binary = store.config.storage == 'binary'
    # XLA's conversion of bfloat16 on CPUs takes longer than the products.
    dtype = (np.uint8 if binary else np.float32 if jax.default_backend() == 'cpu'
             else ml_dtypes.bfloat16)
    position = 0
    for size in _chunk_sizes(store, rows, query_tokens):
        part = rows[position:position + size]
        total = bucket(int(store.table[part, 2].sum()), steps=8)
        width = store.dims // 8 if binary else store.dims
        blocks = np.zeros((total, store.config.block, width), dtype)
        counts = store.gather(part, blocks)
        pages = np.full(total, bucket(size), np.int32)  # Padding belongs to no page.
        pages[:counts.sum()] = np.repeat(np.arange(size), counts)
        yield blocks, pages, size
        position += size


@functools.partial(jax.jit, static_argnames=('pages', 'dims'))
def _score(query: jax.Array, blocks: jax.Array, page_of: jax.Array, *, pages: int,
           dims: int) -> jax.Array:
    """Returns each query token's best product with each page.

    Args:
      query: [T, D] float32.
      blocks: [B, block, D] float32 or bfloat16, or [B, block, D / 8] uint8 signs.
      page_of: page of each block, ascending [B]; `pages` for padding.
      pages: how many there are.
      dims: D.

    Returns:
      [pages, T] float32.
    """
    if blocks.dtype == jnp.uint8:
        bits = blocks[..., None] >> jnp.arange(7, -1, -1, dtype=jnp.uint8) & 1
        exact = jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
        blocks = (bits.reshape(*blocks.shape[:2], dims).astype(exact) * 2 - 1)
        query = query / np.sqrt(dims)
    precision = 'highest' if blocks.dtype == jnp.float32 else None
    products = jnp.einsum('bkd,td->bkt', blocks, query.astype(blocks.dtype),
                          precision=precision, preferred_element_type=jnp.float32)
    best = jax.ops.segment_max(products.max(1), page_of, num_segments=pages,
                               indices_are_sorted=True)
    return best
