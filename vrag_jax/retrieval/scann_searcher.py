"""ScaNN searchers by the rules of its maintainers, searched without its pitfalls."""

import dataclasses
import math
from typing import Any

import numpy as np
from scann.scann_ops.py import scann_ops_pybind
from scann.scann_ops.py.scann_builder import ReorderType

_REORDER_TYPES = {'float32': ReorderType.FLOAT32, 'bfloat16': ReorderType.BFLOAT16,
                  'int8': ReorderType.INT8}
_SAMPLE_FLOATS = 1 << 26
_PARALLEL_FROM = 64  # Queries that are worth several threads.


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """How vectors are searched, by the rules of ScaNN's maintainers.

    Attributes:
      exact_below: fewer vectors are searched by brute force, exactly.
      tree_from: as many vectors or more are partitioned by a tree of sqrt(n) leaves.
      leaves_searched: fraction of the leaves that a query looks into.
      reorder: quantised candidates that are scored again exactly, at least.
      anisotropic_threshold: of the quantisation (Guo et al. 2020, arXiv 1908.10396).
      block_dims: dimensions that are quantised together to 4 bits.
      reorder_dtype: of the vectors for scoring again: 'float32', 'bfloat16' or 'int8'; ''
        leaves candidates with the scores of quantised vectors, in the least memory.
      compact_share: vectors added and deleted since the index was built, as a share of
        those it was built on, above which it is built again.
      recall_queries: for which recall is measured when a quantised index is built; 0 for
        none.
    """

    exact_below: int = 20_000
    tree_from: int = 100_000
    leaves_searched: float = 0.1
    reorder: int = 200
    anisotropic_threshold: float = 0.2
    block_dims: int = 2
    reorder_dtype: str = 'float32'
    compact_share: float = 0.2
    recall_queries: int = 256

    def __post_init__(self):
        if not 0 <= self.exact_below <= self.tree_from:
            raise ValueError(f'need 0 <= exact_below <= tree_from, got {self.exact_below} and '
                             f'{self.tree_from}')
        if not 0 < self.leaves_searched <= 1:
            raise ValueError(f'leaves_searched must be in (0, 1], got {self.leaves_searched}')
        if self.block_dims < 1:
            raise ValueError(f'block_dims must be positive, got {self.block_dims}')
        if self.reorder < 1:
            raise ValueError(f'reorder must be positive, got {self.reorder}')
        if self.reorder_dtype not in ('', *_REORDER_TYPES):
            raise ValueError(f'reorder_dtype must be one of {("", *_REORDER_TYPES)}, got '
                             f'{self.reorder_dtype!r}')
        for name in ('compact_share', 'recall_queries'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')


def build_searcher(vectors: np.ndarray, config: IndexConfig) -> Any:
    """Returns a ScaNN searcher over vectors [N, D] float32, N > 0."""
    count = len(vectors)
    builder = scann_ops_pybind.builder(vectors, min(10, count), 'dot_product')
    if count < config.exact_below:
        return builder.score_brute_force().build()
    if count >= config.tree_from:
        builder = builder.tree(_leaves(count, 1.0), _leaves(count, config.leaves_searched),
                               training_sample_size=min(count, 250_000))
    # ScaNN copies the sample on which it learns 16 codes a block; few vectors do for that.
    sample = min(100_000, max(1000, _SAMPLE_FLOATS // vectors.shape[1]))
    builder = builder.score_ah(config.block_dims, training_sample_size=sample,
                               anisotropic_quantization_threshold=config.anisotropic_threshold)
    if config.reorder_dtype:
        builder = builder.reorder(min(config.reorder, count),
                                  _REORDER_TYPES[config.reorder_dtype])
    return builder.build()


def search_searcher(searcher: Any, queries: np.ndarray, k: int, config: IndexConfig,
                    everywhere: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Searches a quantised searcher.

    Args:
      searcher: of `build_searcher`.
      queries: [Q, D] float32, Q > 0.
      k: rows wanted, at most as many as there are.
      config: with which it was built.
      everywhere: look into all leaves, so that nothing is missing.

    Returns:
      Of each query rows and scores, best first; fewer than k if the leaves that were
      searched hold fewer.
    """
    count = searcher.size()
    reorder = min(max(k, config.reorder), count) if config.reorder_dtype else None
    leaves = None
    if count >= config.tree_from:
        leaves = _leaves(count, 1.0 if everywhere else config.leaves_searched)
    search = (searcher.search_batched_parallel if len(queries) >= _PARALLEL_FROM
              else searcher.search_batched)
    rows, scores = search(queries, k, reorder, leaves)
    # ScaNN pads with row 0 and score NaN where it has found fewer than k.
    found = np.isfinite(scores)
    if found.all():
        return list(zip(rows, scores, strict=True))
    return [(r[f], s[f]) for r, s, f in zip(rows, scores, found, strict=True)]


def _leaves(count: int, share: float) -> int:
    return max(1, round(max(1, round(math.sqrt(count))) * share))
