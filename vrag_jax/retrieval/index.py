"""ScaNN index over dense page vectors, with ids and files of its own."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scann.scann_ops.py import scann_ops_pybind

from vrag_jax.retrieval.artifact import ArtifactError, read_artifact, write_artifact

_KIND = 'scann_index'
_VECTORS = 'vectors.npy'
_SCANN = 'scann'
_SPARE = 16  # Hits searched beyond those wanted, among which equal scores may lie.
_DIGITS = 6  # Scores that agree to so many decimals are equal.


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """How vectors are searched, by the rules of ScaNN's maintainers.

    Attributes:
      exact_below: fewer vectors are searched by brute force, exactly.
      tree_from: as many vectors or more are partitioned by a tree of sqrt(n) leaves.
      leaves_searched: fraction of the leaves that a query looks into.
      reorder: quantised candidates that are scored again exactly, at least.
      anisotropic_threshold: of the quantisation (Guo et al. 2020, arXiv 1908.10396).
    """

    exact_below: int = 20_000
    tree_from: int = 100_000
    leaves_searched: float = 0.1
    reorder: int = 200
    anisotropic_threshold: float = 0.2

    def __post_init__(self):
        if not 0 <= self.exact_below <= self.tree_from:
            raise ValueError(f'need 0 <= exact_below <= tree_from, got {self.exact_below} and '
                             f'{self.tree_from}')
        if not 0 < self.leaves_searched <= 1:
            raise ValueError(f'leaves_searched must be in (0, 1], got {self.leaves_searched}')
        if self.reorder < 1:
            raise ValueError(f'reorder must be positive, got {self.reorder}')


class ScannIndex:
    """Finds the vectors of the largest inner product with a query.

    Made by `build`, `load` or `from_files`. Safe to search from many threads.

    Attributes:
      ids: id of each vector.
      dims: length of a vector.
      encoder: fingerprint of the encoder that made the vectors.
      config: how it is searched.
    """

    def __init__(self, searcher: Any, vectors: np.ndarray | None, ids: tuple[str, ...], dims: int,
                 encoder: str, config: IndexConfig):
        self.ids = ids
        self.dims = dims
        self.encoder = encoder
        self.config = config
        self._searcher = searcher
        self._vectors = vectors

    @classmethod
    def build(cls, vectors: np.ndarray, ids: Sequence[str], encoder: str = '',
              config: IndexConfig = IndexConfig()) -> 'ScannIndex':  # noqa: B008 (immutable)
        """Builds an index.

        Args:
          vectors: [N, D] float32, N > 0.
          ids: N unique ids.
          encoder: fingerprint of what made the vectors.
          config: how it is searched.

        Raises:
          ValueError: if shapes do not agree, an id stands twice, or a value is
            not finite; the message names the id.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        ids = tuple(ids)
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ValueError(f'vectors: expected [N, D] with N, D > 0, got {vectors.shape}')
        if len(ids) != len(vectors):
            raise ValueError(f'{len(ids)} ids for {len(vectors)} vectors')
        if len(set(ids)) != len(ids):
            seen: set[str] = set()
            twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise ValueError(f'id {twice!r} stands twice')
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise ValueError(f'the vector of {ids[bad.argmax()]!r} is not finite ({bad.sum()} of '
                             f'{len(ids)} vectors)')
        searcher = _searcher(vectors, config)
        exact = len(ids) < config.exact_below
        return cls(searcher, vectors if exact else None, ids, vectors.shape[1], encoder, config)

    @property
    def exact(self) -> bool:
        """Whether search is exact."""
        return self._vectors is not None

    def __len__(self) -> int:
        return len(self.ids)

    def search_batched(self, queries: np.ndarray, k: int
                       ) -> tuple[list[list[str]], list[np.ndarray]]:
        """Finds the best ids of each query.

        Args:
          queries: [Q, D] float32.
          k: hits wanted a query; there are fewer if the index is smaller, or if
            the searched leaves hold fewer.

        Returns:
          Ids of each query, best first, and their scores float32, one array a query.

        Raises:
          ValueError: if shapes do not agree, k < 1, or a query is not finite.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dims:
            raise ValueError(f'queries: expected [Q, {self.dims}], got {queries.shape}')
        if k < 1:
            raise ValueError(f'k must be positive, got {k}')
        if not np.isfinite(queries).all():
            raise ValueError('queries: not finite')
        if not len(queries):
            return [], []
        k = min(k, len(self))
        if self._vectors is not None:
            return self._search_exact(queries, k, self._vectors)
        reorder = min(max(k, self.config.reorder), len(self))
        rows, scores = self._searcher.search_batched(queries, k, reorder)
        # ScaNN pads with row 0 and score NaN where it has found fewer than k.
        found = np.isfinite(scores)
        ids = [[self.ids[row] for row in r[f]] for r, f in zip(rows, found, strict=True)]
        return ids, [s[f] for s, f in zip(scores, found, strict=True)]

    def _search_exact(self, queries: np.ndarray, k: int, vectors: np.ndarray
                      ) -> tuple[list[list[str]], list[np.ndarray]]:
        """Searches all vectors; equal scores are in the order of the ids.

        The last bits of ScaNN's scores depend on how many queries are searched
        together, and with them the order of equal hits. A run that is resumed, whose
        query cache is empty, would find other pages than one that never stopped.
        """
        rows, _ = self._searcher.search_batched(queries, min(k + _SPARE, len(self)))
        ids, scores = [], []
        for query, found in zip(queries, rows, strict=True):
            order, exact = _order(vectors, query, found)
            while len(found) < len(self) and exact[k - 1] - exact[-1] < 10.0**-_DIGITS:
                # As many hits as were found are equal to the last one wanted.
                found, _ = self._searcher.search(query, min(2 * len(found), len(self)))
                order, exact = _order(vectors, query, found)
            ids.append([self.ids[row] for row in order[:k]])
            scores.append(exact[:k].astype(np.float32))
        return ids, scores

    def save(self, directory: Path) -> None:
        """Writes the index to a directory, replacing one that is there atomically."""
        write_artifact(directory, _KIND, self.write_files)

    @classmethod
    def load(cls, directory: Path) -> 'ScannIndex':
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError: if there is no index.
          ArtifactError: if it is corrupt or something else; says what differs.
        """
        return cls.from_files(*read_artifact(directory, _KIND))

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes the index's files into a folder; returns the fields to read them by."""
        if self._vectors is not None:
            np.save(folder / _VECTORS, self._vectors, allow_pickle=False)
        else:
            (folder / _SCANN).mkdir()
            self._searcher.serialize(str(folder / _SCANN), relative_path=True)
        return {'ids': list(self.ids), 'dims': self.dims, 'encoder': self.encoder,
                'exact': self.exact, 'config': dataclasses.asdict(self.config)}

    @classmethod
    def from_files(cls, folder: Path, fields: dict[str, Any]) -> 'ScannIndex':
        """Reads the files of `write_files`, whose checksums the caller has checked."""
        try:
            ids, dims, exact = tuple(fields['ids']), fields['dims'], fields['exact']
            encoder, config = fields['encoder'], IndexConfig(**fields['config'])
        except (KeyError, TypeError) as error:
            raise ArtifactError(f'{folder}: fields of the index: {error!r}') from error
        if exact:
            vectors = np.load(folder / _VECTORS, allow_pickle=False)
            if vectors.shape != (len(ids), dims):
                raise ArtifactError(f'{folder / _VECTORS}: expected {(len(ids), dims)}, got '
                                    f'{vectors.shape}')
            return cls(_searcher(vectors, config), vectors, ids, dims, encoder, config)
        if any(folder.rglob('*.pkl')):
            raise ArtifactError(f'{folder}: holds a pickle, which is never loaded')
        searcher = scann_ops_pybind.load_searcher(str(folder / _SCANN))
        if searcher.size() != len(ids):
            raise ArtifactError(f'{folder / _SCANN}: holds {searcher.size()} vectors for '
                                f'{len(ids)} ids')
        return cls(searcher, None, ids, dims, encoder, config)


def _order(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows, best first and equal ones ascending, and their scores as float64."""
    rows = np.sort(rows)
    scores = vectors[rows].astype(np.float64) @ query.astype(np.float64)
    best = np.argsort(-scores.round(_DIGITS), kind='stable')
    return rows[best], scores[best]


def _searcher(vectors: np.ndarray, config: IndexConfig) -> Any:
    count = len(vectors)
    builder = scann_ops_pybind.builder(vectors, min(10, count), 'dot_product')
    if count < config.exact_below:
        return builder.score_brute_force().build()
    if count >= config.tree_from:
        leaves = max(1, round(math.sqrt(count)))
        builder = builder.tree(leaves, max(1, round(leaves * config.leaves_searched)),
                               training_sample_size=min(count, 250_000))
    builder = builder.score_ah(2, anisotropic_quantization_threshold=config.anisotropic_threshold)
    return builder.reorder(min(config.reorder, count)).build()
