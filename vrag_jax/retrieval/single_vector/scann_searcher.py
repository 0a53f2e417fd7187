"""ScaNN searchers by the rules of its maintainers, searched without its pitfalls.

ScaNN is published for Linux and some Pythons alone. Where it is missing all vectors are
searched, which finds what ScaNN's brute force does.
"""

import dataclasses
import functools
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.single_vector.exact_search import ExactSearcher

MISSING = ''
"""Why there is no ScaNN here; empty where there is."""
try:
    from scann.scann_ops.py import scann_ops_pybind
    from scann.scann_ops.py.scann_builder import ReorderType
except ImportError as error:
    MISSING = str(error)

_LOG = logging.getLogger(__name__)
_REORDER_DTYPES = ('float32', 'bfloat16', 'int8')
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
        if self.reorder_dtype not in ('', *_REORDER_DTYPES):
            raise ValueError(f'reorder_dtype must be one of {("", *_REORDER_DTYPES)}, got '
                             f'{self.reorder_dtype!r}')
        for name in ('compact_share', 'recall_queries'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')


def is_exact(count: int, config: IndexConfig) -> bool:
    """Whether an index of so many vectors, built here, compares a query with all of them."""
    return bool(MISSING) or count < config.exact_below


def build_exact(vectors: np.ndarray) -> Any:
    """Returns a searcher by brute force over vectors [N, D] float32, N > 0."""
    if MISSING:
        _say_that_it_is_missing()
        return ExactSearcher(vectors)
    builder = scann_ops_pybind.builder(vectors, min(10, len(vectors)), 'dot_product')
    return builder.score_brute_force().build()


def build_quantised(vectors: np.ndarray, config: IndexConfig) -> Any:
    """Returns a ScaNN searcher over vectors [N, D] float32, N > 0."""
    count = len(vectors)
    builder = scann_ops_pybind.builder(vectors, min(10, count), 'dot_product')
    if count >= config.tree_from:
        builder = builder.tree(_leaves(count, 1.0), _leaves(count, config.leaves_searched),
                               training_sample_size=min(count, 250_000))
    # ScaNN copies the sample on which it learns 16 codes a block; few vectors do for that.
    sample = min(100_000, max(1000, _SAMPLE_FLOATS // vectors.shape[1]))
    builder = builder.score_ah(config.block_dims, training_sample_size=sample,
                               anisotropic_quantization_threshold=config.anisotropic_threshold)
    if config.reorder_dtype:
        builder = builder.reorder(min(config.reorder, count),
                                  getattr(ReorderType, config.reorder_dtype.upper()))
    return builder.build()


def load_quantised(folder: Path, vectors: np.ndarray | None) -> Any:
    """Reads a searcher that `build_quantised` made from its own files.

    Where ScaNN is missing the searcher is exact, over the vectors if they were kept.

    Raises:
      ArtifactError: if ScaNN is missing and there are no vectors.
    """
    if not MISSING:
        return scann_ops_pybind.load_searcher(str(folder))
    if vectors is None:
        raise ArtifactError(f'{folder}: made without keeping the vectors, so only ScaNN can search '
                            f'it, which is missing here ({MISSING}); build the index anew')
    return build_exact(vectors)


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


@functools.cache
def _say_that_it_is_missing() -> None:
    _LOG.info('ScaNN is missing (%s): vectors are searched exactly', MISSING)


def _leaves(count: int, share: float) -> int:
    return max(1, round(max(1, round(math.sqrt(count))) * share))
