"""Exact MaxSim of queries with pages of a token store, in JAX, in static shapes."""

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from vrag_jax.retrieval.late_interaction.shapes import bucket
from vrag_jax.retrieval.late_interaction.token_store import TokenStore

_QUERY_TOKENS = 512  # In one call, where all pages are scored.
# Of tokens and products, as float32, in one call. What stays in a CPU's cache between filling
# and reading takes two thirds of the time; an accelerator wants few large calls.
_CPU_BYTES, _BYTES = 8 << 20, 128 << 20
_ALIGNED = 64
_BUFFERS: list[np.ndarray] = []  # One at most: callers mostly come one at a time.
_LOCK = threading.Lock()


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
    scores = []
    for query, wanted in zip(queries, rows, strict=True):
        parts = [best.sum(axis=1) for best in _best_products(store, _padded([query]), wanted)]
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
        for best in _best_products(store, padded, rows):
            sums = np.add.reduceat(best[:, :tokens], starts, axis=1)
            out[start:stop, position:position + len(best)] = sums.T
            position += len(best)
        start = stop
    return out


def _padded(queries: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the tokens of queries, and zeros up to a static size, [T, D] float32."""
    tokens = np.concatenate(queries).astype(np.float32)
    padded = np.zeros((bucket(len(tokens), least=8, steps=8), tokens.shape[1]), np.float32)
    padded[:len(tokens)] = tokens
    return padded


def _best_products(store: TokenStore, query: np.ndarray, rows: np.ndarray
                   ) -> Iterator[np.ndarray]:
    """Yields the best product of each of the query's tokens [T, D] with some of the pages.

    A buffer is filled again and again, as soon as the scores of what was in it are there:
    getting fresh memory from the system takes longer than filling it.
    """
    binary, on_cpu = store.config.storage == 'binary', jax.default_backend() == 'cpu'
    # XLA's conversion of bfloat16 on CPUs takes longer than the products.
    dtype = np.dtype(np.uint8 if binary else np.float32 if on_cpu else ml_dtypes.bfloat16)
    block_shape = store.config.block, store.dims // 8 if binary else store.dims
    most = (_CPU_BYTES if on_cpu else _BYTES) // (
        4 * store.config.block * (store.dims + len(query)))
    ends = np.cumsum(store.table[rows, 2])
    position = 0
    while position < len(rows):
        before = ends[position - 1] if position else 0
        size = max(1, int(np.searchsorted(ends, before + most, side='right')) - position)
        part = rows[position:position + size]
        total = bucket(int(store.table[part, 2].sum()), steps=8)
        with _buffer(total * block_shape[0] * block_shape[1] * dtype.itemsize) as memory:
            blocks = memory.view(dtype).reshape(total, *block_shape)
            counts = store.gather(part, blocks)
            blocks[counts.sum():] = 0
            pages = np.full(total, bucket(size), np.int32)  # Padding belongs to no page.
            pages[:counts.sum()] = np.repeat(np.arange(size), counts)
            best = np.array(_score(query, blocks, pages, pages=bucket(size), dims=store.dims))
        yield best[:size]
        position += size


@contextlib.contextmanager
def _buffer(size: int) -> Iterator[np.ndarray]:
    """Lends a buffer of `size` bytes, uint8, with anything in it."""
    with _LOCK:
        memory = _BUFFERS.pop() if _BUFFERS else np.empty(0, np.uint8)
    if len(memory) < size:
        memory = np.empty(size + _ALIGNED, np.uint8)
        # What is aligned so is used by XLA on CPUs where it lies; anything else is copied.
        memory = memory[-memory.ctypes.data % _ALIGNED:]
    try:
        yield memory[:size]
    finally:
        with _LOCK:
            if not _BUFFERS:
                _BUFFERS.append(memory)


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
    return jax.ops.segment_max(products.max(1), page_of, num_segments=pages,
                               indices_are_sorted=True)
