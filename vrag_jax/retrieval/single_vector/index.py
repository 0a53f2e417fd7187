"""ScaNN index over dense page vectors, with ids and files of its own."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.single_vector import scann_searcher
from vrag_jax.retrieval.single_vector.exact_search import (
    best_rows,
    exact_among,
    exact_scores,
    recall_of,
)
from vrag_jax.retrieval.single_vector.scann_searcher import IndexConfig, is_exact, search_searcher
from vrag_jax.retrieval.vector_checks import check_rows

__all__ = ['IndexConfig', 'ScannIndex']

_LOG = logging.getLogger(__name__)
_VECTORS, _ADDED, _BASE_ROWS = 'vectors.npy', 'added.npy', 'base_rows.npy'
_SCANN = 'scann'
_SPARE = 6  # Hits searched beyond those wanted, among which equal scores may lie.
_CLEAR = 1e-5  # Of the product of the norms: ten times what ScaNN's float32 is off by.

Found = list[tuple[np.ndarray, np.ndarray]]
"""Of each query rows and scores, best first."""


class ScannIndex:
    """Finds the vectors of the largest inner product with a query.

    Made by `build`, `updated` or `from_files`; immutable, safe to search from many
    threads. An exact index compares all vectors with a query; all are exact where ScaNN is
    missing. A quantised index is a ScaNN searcher over the vectors it was built on (of
    which `updated` strikes some out) and the vectors added since, which are searched by
    brute force. ScaNN's own `upsert` and `delete` are not used: they need ids in a pickle,
    and a deletion gives the last row the deleted one's number.

    Attributes:
      ids: id of each vector.
      dims: length of a vector.
      encoder: fingerprint of the encoder that made the vectors.
      config: how it is searched.
      recall: what `measure_recall` found when the searcher was built, against exact search of
        the same vectors; None for an exact index, or if the config asks for no queries.
    """

    def __init__(self, searcher: Any, vectors: np.ndarray | None, ids: tuple[str, ...], dims: int,
                 encoder: str, config: IndexConfig, exact: bool,
                 base_rows: np.ndarray | None = None, added: np.ndarray | None = None,
                 recall: dict[str, Any] | None = None):
        self.ids = ids
        self.dims = dims
        self.encoder = encoder
        self.config = config
        self.recall = recall
        self._searcher = searcher
        # Of an exact index all vectors, of a quantised one those it was built on, or None.
        self._vectors = vectors
        self._base_size = searcher.size()
        # Rows of this index are the kept rows of the searcher, then those added.
        self._base_rows = np.arange(self._base_size) if base_rows is None else base_rows
        self._added = np.zeros((0, dims), np.float32) if added is None else added
        self._row_of_base = np.full(self._base_size, -1, np.int64)
        self._row_of_base[self._base_rows] = np.arange(len(self._base_rows))
        self.exact = exact
        self._longest = 0.0
        if self.exact and vectors is not None:
            self._longest = float(np.sqrt(np.einsum('nd,nd->n', vectors, vectors).max()))

    @classmethod
    def build(cls, vectors: np.ndarray, ids: Sequence[str], encoder: str = '',
              config: IndexConfig = IndexConfig(),  # noqa: B008 (immutable)
              keep_vectors: bool = True, queries: np.ndarray | None = None) -> 'ScannIndex':
        """Builds an index.

        Args:
          vectors: [N, D] float32, N > 0.
          ids: N unique ids.
          encoder: fingerprint of what made the vectors.
          config: how it is searched.
          keep_vectors: of a quantised index keep the vectors beside the quantised ones, in
            a memory-mapped file when read back. Without them `updated` has to be told
            vectors when it builds anew, and searches among few rows are less exact.
          queries: [Q, D] for which recall is measured; by default vectors of the index,
            perturbed.

        Raises:
          ValueError: if shapes do not agree, an id stands twice, or a value is
            not finite; the message names the id.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        ids = tuple(ids)
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ValueError(f'vectors: expected [N, D] with N, D > 0, got {vectors.shape}')
        check_rows(vectors, ids)
        if is_exact(len(ids), config):
            return cls._of_all(vectors, ids, encoder, config)
        index = cls(scann_searcher.build_quantised(vectors, config),
                    vectors if keep_vectors else None, ids, vectors.shape[1], encoder, config,
                    exact=False)
        if config.recall_queries:
            index.recall = index.measure_recall(vectors, queries)
        return index

    @classmethod
    def _of_all(cls, vectors: np.ndarray, ids: tuple[str, ...], encoder: str,
                config: IndexConfig) -> 'ScannIndex':
        return cls(scann_searcher.build_exact(vectors), vectors, ids, vectors.shape[1], encoder,
                   config, exact=True)

    def __len__(self) -> int:
        return len(self.ids)

    def search_batched(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
                       ) -> tuple[list[list[str]], list[np.ndarray]]:
        """Finds the best ids of each query.

        Args:
          queries: [Q, D] float32.
          k: hits wanted a query; there are fewer if the index is smaller, fewer are
            allowed, or, without `allowed`, the searched leaves hold fewer.
          allowed: bool [N], in the order of `ids`: which may be found; None for all.

        Returns:
          Ids of each query, best first, and their scores float32, one array a query.

        Raises:
          ValueError: if shapes do not agree, k < 1, or a query is not finite.
        """
        found = self.search_rows(queries, k, allowed)
        return [[self.ids[row] for row in rows] for rows, _ in found], [s for _, s in found]

    def search_rows(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """Finds rows instead of ids, otherwise as `search_batched`."""
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dims:
            raise ValueError(f'queries: expected [Q, {self.dims}], got {queries.shape}')
        if k < 1:
            raise ValueError(f'k must be positive, got {k}')
        if not np.isfinite(queries).all():
            raise ValueError('queries: not finite')
        if allowed is not None and (allowed.shape != (len(self),) or allowed.dtype != bool):
            raise ValueError(f'allowed: expected bool [{len(self)}], got {allowed.dtype} '
                             f'{allowed.shape}')
        if not len(queries):
            return []
        if allowed is not None:
            rows = np.flatnonzero(allowed)
            vectors = self._vectors_of(rows) if len(rows) < max(
                self.config.exact_below, 1) or self.exact else None
            if vectors is not None:
                return [(rows[best], scores) for best, scores in exact_among(vectors, queries, k)]
        k = min(k, len(self))
        if self.exact and self._vectors is not None:
            return self._search_exact(queries, k, self._vectors)
        return self._search_quantised(queries, k, allowed)

    def _search_exact(self, queries: np.ndarray, k: int, vectors: np.ndarray) -> Found:
        """Searches all vectors; equal scores are in the order of the ids.

        The last bits of ScaNN's scores depend on how many queries are searched
        together, and with them the order of equal hits. A run that is resumed, whose
        query cache is empty, would find other pages than one that never stopped. So the
        scores of hits are computed in float64, and where ScaNN's are too close to tell
        which hits they are, those of some more.
        """
        found, scores = self._searcher.search_batched(queries, min(k + _SPARE, len(self)))
        gaps = scores[:, :-1] - scores[:, 1:]
        close = _CLEAR * self._longest * np.linalg.norm(queries, axis=1, keepdims=True)
        clear = (gaps[:, :k] > close).all(axis=1)

        def more(query: np.ndarray, count: int) -> np.ndarray:
            return self._searcher.search(query, count)[0]

        return [(rows[:k], exact_scores(vectors, query, rows[:k]).astype(np.float32))
                if sure else best_rows(vectors, query, rows, k, more)
                for query, rows, sure in zip(queries, found, clear.tolist(), strict=True)]

    def _search_quantised(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Found:
        """Searches the searcher for more than k if rows are struck out or not allowed."""
        if allowed is None and len(self) == self._base_size and not len(self._added):
            return search_searcher(self._searcher, queries, k, self.config)
        fits = np.ones(len(self), bool) if allowed is None else allowed
        kept = np.zeros(self._base_size, bool)
        kept[self._base_rows] = fits[:len(self._base_rows)]
        kept_count = int(kept.sum())
        added = np.flatnonzero(fits[len(self._base_rows):])
        base: Found = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
        todo, count = np.arange(len(queries)), k
        if kept_count < self._base_size:
            count = round(1.2 * k * self._base_size / max(kept_count, 1)) + _SPARE
        while len(todo) and kept_count:
            count = min(count, self._base_size)
            # Where no row is excluded the leaves decide, as the config says.
            everywhere = kept_count < self._base_size and count > self._base_size // 4
            found = search_searcher(self._searcher, queries[todo], count, self.config, everywhere)
            short = []
            for query, (rows, scores) in zip(todo, found, strict=True):
                good = kept[rows]
                base[query] = self._row_of_base[rows[good]][:k], scores[good][:k]
                if good.sum() < min(k, kept_count):
                    short.append(query)
            if kept_count == self._base_size or (count == self._base_size and everywhere):
                break
            todo, count = np.array(short, np.int64), 4 * count
        if not len(added):
            return base
        vectors = self._added[added]
        merged = []
        for (rows, scores), (more, more_scores) in zip(
                base, exact_among(vectors, queries, k), strict=True):
            rows = np.concatenate([rows, added[more] + len(self._base_rows)])
            scores = np.concatenate([scores, more_scores])
            order = np.argsort(-scores, kind='stable')[:k]
            merged.append((rows[order], scores[order]))
        return merged

    def _vectors_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Returns the vectors of rows, float32; None if they were not kept."""
        if self._vectors is None:
            return None
        inside = rows < len(self._base_rows)
        vectors = np.empty((len(rows), self.dims), np.float32)
        vectors[inside] = self._vectors[self._base_rows[rows[inside]]]
        vectors[~inside] = self._added[rows[~inside] - len(self._base_rows)]
        return vectors

    def measure_recall(self, vectors: np.ndarray, queries: np.ndarray | None = None, k: int = 10,
                       seed: int = 0) -> dict[str, Any]:
        """Compares search with exact search of the same vectors by the same queries.

        Args:
          vectors: [N, D] float32 of the index.
          queries: [Q, D]; by default `config.recall_queries` of the vectors, each with
            random noise of a tenth of its length added.
          k: hits that are compared.
          seed: of the sample and its noise.

        Returns:
          'recall', the mean share of the exact `k` best that are found; 'k', 'queries',
          how many, and 'source', 'given' or 'perturbed'.
        """
        source = 'given' if queries is not None else 'perturbed'
        if queries is None:
            rng = np.random.default_rng(seed)
            size = min(len(vectors), max(self.config.recall_queries, 1))
            queries = vectors[rng.choice(len(vectors), size, replace=False)]
            noise = rng.standard_normal(queries.shape, np.float32)
            queries = queries + noise * 0.1 * np.linalg.norm(queries, axis=1, keepdims=True) / (
                np.sqrt(self.dims))
        found = [rows for rows, _ in self.search_rows(queries, k)]
        return {'recall': recall_of(vectors, queries, found, k), 'k': min(k, len(self)),
                'queries': len(queries), 'source': source}

    def updated(self, vectors: np.ndarray, ids: Sequence[str], deleted: Collection[str] = (),
                all_vectors: Callable[[], np.ndarray] | None = None,
                queries: Callable[[int], np.ndarray | None] = lambda count: None) -> 'ScannIndex':
        """Returns an index without some vectors and with others; this one stays as it is.

        Args:
          vectors: [M, D] float32 to add; M may be 0.
          ids: of the vectors; one that is there and not deleted is refused.
          deleted: ids that go.
          all_vectors: returns all vectors of the new index, [N, D], those kept first; is
            asked when the index is built anew and has not kept its vectors.
          queries: returns those of `build` for an index of so many vectors; asked when it is
            built anew.

        Raises:
          ValueError: as `build`, for an id to delete that is not there, or if nothing is
            left.
        """
        deleted = set(deleted)
        missing = deleted - set(self.ids)
        if missing:
            raise ValueError(f'id {min(missing)!r} is not in the index ({len(missing)} of '
                             f'{len(deleted)} ids to delete)')
        vectors = np.ascontiguousarray(vectors, np.float32).reshape(-1, self.dims)
        kept = np.array([row for row, i in enumerate(self.ids) if i not in deleted], np.int64)
        new_ids = (*(self.ids[row] for row in kept), *ids)
        if not new_ids:
            raise ValueError('nothing would be left in the index')
        check_rows(vectors, tuple(ids))
        check_rows(None, new_ids)
        inside = kept < len(self._base_rows)
        base_rows = self._base_rows[kept[inside]]
        added = np.concatenate([self._added[kept[~inside] - len(self._base_rows)], vectors])
        changed = len(added) + self._base_size - len(base_rows)
        anew = (self.exact or is_exact(len(new_ids), self.config)
                or changed > self.config.compact_share * self._base_size)
        if not anew:
            return ScannIndex(self._searcher, self._vectors, new_ids, self.dims, self.encoder,
                              self.config, False, base_rows, added, self.recall)
        own = self._vectors_of(kept)
        if own is not None:
            whole = np.concatenate([own, vectors])
        elif all_vectors is not None:
            whole = all_vectors()
        else:
            raise ValueError('the index has to be built anew and has not kept its vectors')
        _LOG.info('index of %d vectors built anew after %d changes', len(whole), changed)
        return ScannIndex.build(whole, new_ids, self.encoder, self.config,
                                self._vectors is not None, queries(len(whole)))

    def in_order(self, ids: Sequence[str]) -> 'ScannIndex':
        """Returns an exact index with its vectors in the order of these ids; others as they are."""
        if not self.exact or self._vectors is None or tuple(ids) == self.ids:
            return self
        row = {i: number for number, i in enumerate(self.ids)}
        return ScannIndex.build(self._vectors[[row[i] for i in ids]], ids, self.encoder,
                                self.config)

    def with_config(self, config: IndexConfig) -> 'ScannIndex':
        """Returns the same index, searched with other leaves and candidates.

        Args:
          config: `leaves_searched`, `reorder`, `compact_share` and `recall_queries` may differ.

        Raises:
          ValueError: if something else differs: that has to be built.
        """
        free = {name: getattr(self.config, name) for name in (
            'leaves_searched', 'reorder', 'compact_share', 'recall_queries')}
        if dataclasses.replace(config, **free) != self.config:
            raise ValueError(f'only {", ".join(free)} can differ without building an index, got '
                             f'{config} for {self.config}')
        return ScannIndex(self._searcher, self._vectors, self.ids, self.dims, self.encoder,
                          config, self.exact, self._base_rows, self._added)

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes the index's files into a folder; returns the fields to read it by."""
        if self._vectors is not None:
            np.save(folder / _VECTORS, self._vectors, allow_pickle=False)
        fields = {'ids': list(self.ids), 'dims': self.dims, 'encoder': self.encoder,
                  'exact': self.exact, 'config': dataclasses.asdict(self.config)}
        if self.exact:
            return fields
        (folder / _SCANN).mkdir()
        self._searcher.serialize(str(folder / _SCANN), relative_path=True)
        np.save(folder / _ADDED, self._added, allow_pickle=False)
        np.save(folder / _BASE_ROWS, self._base_rows, allow_pickle=False)
        return {**fields, 'recall': self.recall, 'vectors': self._vectors is not None}

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
            return cls._of_all(vectors, ids, encoder, config)
        if any(folder.rglob('*.pkl')):
            raise ArtifactError(f'{folder}: holds a pickle, which is never loaded')
        vectors = (np.load(folder / _VECTORS, mmap_mode='r', allow_pickle=False)
                   if fields.get('vectors') else None)
        searcher = scann_searcher.load_quantised(folder / _SCANN, vectors)
        base_rows, added = np.arange(searcher.size()), np.zeros((0, dims), np.float32)
        if 'recall' in fields:  # Indices of before there were updates lack it.
            added = np.load(folder / _ADDED, allow_pickle=False)
            base_rows = np.load(folder / _BASE_ROWS, allow_pickle=False)
        rows = len(base_rows) + len(added)
        if rows != len(ids):
            raise ArtifactError(f'{folder / _SCANN}: holds {rows} vectors for {len(ids)} ids')
        if scann_searcher.MISSING and vectors is not None:
            return cls._of_all(np.concatenate([vectors[base_rows], added]), ids, encoder, config)
        return cls(searcher, vectors, ids, dims, encoder, config, False, base_rows, added,
                   fields.get('recall'))
