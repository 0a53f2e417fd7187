"""Retrieval by one vector a page, of a lexical encoder or an embedder."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.embedding import Embedder
from vrag_jax.retrieval.host_threads import in_pieces
from vrag_jax.retrieval.retriever import (
    Changes,
    Hits,
    Retriever,
    find_embedder,
    sample_queries,
)
from vrag_jax.retrieval.single_vector.encoders import PageEncoder, read_encoder
from vrag_jax.retrieval.single_vector.index import IndexConfig, ScannIndex

_NOTHING = 1e-6  # Score of unit vectors that texts without a common term may have by rounding.


class DenseRetriever:
    """Searches page vectors in a ScaNN index.

    Args:
      encoder: makes vectors of queries: a `PageEncoder`, fitted on the pages' texts, or
        an `Embedder` of single vectors.
      index: over the pages' vectors.

    Raises:
      ArtifactError: if the index was made by another encoder.
    """

    kind = 'dense'

    def __init__(self, encoder: PageEncoder | Embedder, index: ScannIndex):
        if index.encoder != encoder.fingerprint:
            raise ArtifactError(f'the index was made by encoder {index.encoder[:12]!r}, not by '
                                f'{encoder.fingerprint[:12]!r}')
        self.encoder = encoder
        self.index = index
        # What learns from the corpus has to be fitted again when pages change.
        self._lexical = cast(PageEncoder, encoder) if hasattr(encoder, 'fit') else None
        self._embedder = cast(Embedder, encoder) if self._lexical is None else None

    @classmethod
    def build(cls, embedder: Embedder, ids: Sequence[str], vectors: np.ndarray,
              config: IndexConfig = IndexConfig(),  # noqa: B008 (immutable)
              queries: Sequence[str] = ()) -> 'DenseRetriever':
        """Indexes what an embedder made of pages.

        Args:
          embedder: of single vectors.
          ids: of the pages.
          vectors: [N, D] float32, one a page.
          config: of the index.
          queries: for which recall is measured, `config.recall_queries` of them at most;
            by default for vectors of pages, perturbed.
        """
        if embedder.multi_vector:
            raise ValueError(f'{embedder.kind} makes several vectors a page: use late interaction')
        given = recall_vectors(lambda q: np.concatenate(embedder.embed_queries(q)), queries,
                               config, len(ids))
        return cls(embedder, ScannIndex.build(vectors, ids, embedder.fingerprint, config,
                                              queries=given))

    @classmethod
    def fit(cls, encoder: PageEncoder, ids: Sequence[str], texts: Sequence[str],
            config: IndexConfig = IndexConfig(),  # noqa: B008 (immutable)
            queries: Sequence[str] = ()) -> 'DenseRetriever':
        """Fits a lexical encoder on the pages' texts and indexes them; otherwise as `build`."""
        encoder.fit(texts)
        vectors = encoder.encode_pages(texts)
        given = recall_vectors(encoder.encode_queries, queries, config, len(ids))
        return cls(encoder, ScannIndex.build(vectors, ids, encoder.fingerprint, config,
                                             queries=given))

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    @property
    def ids(self) -> tuple[str, ...]:
        return self.index.ids

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({'text' if self._embedder is None else self._embedder.reads})

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        if not queries:
            return [], []
        lexical = self._lexical
        if lexical is not None:
            # No model on a device, for which the batch had better stay whole.
            found = in_pieces(lambda piece: self._search(
                lexical.encode_queries(piece), k, allowed), queries)
            return [i for ids, _ in found for i in ids], [s for _, scores in found for s in scores]
        assert self._embedder is not None
        return self._search(np.concatenate(self._embedder.embed_queries(queries)), k, allowed)

    def _search(self, vectors: np.ndarray, k: int, allowed: np.ndarray | None) -> Hits:
        matchable = np.any(vectors != 0, axis=1)
        found = iter(zip(*self.index.search_batched(vectors[matchable], k, allowed), strict=True))
        none: tuple[list[str], np.ndarray] = [], np.zeros(0, np.float32)
        hits = [next(found) if able else none for able in matchable.tolist()]
        if self._lexical is not None:
            hits = [_sharing(ids, scores) for ids, scores in hits]
        return [ids for ids, _ in hits], [scores for _, scores in hits]

    def updated(self, changes: Changes) -> Retriever:
        if self._lexical is not None:
            from vrag_jax.retrieval.lexical.retriever import fit_words

            # Weights of terms depend on all pages.
            pages = changes.pages()
            return fit_words(
                copy.copy(self._lexical), [page.page_id for page in pages],
                [page.text for page in pages], self.index.config, changes.queries,
                changes.scratch)
        embedder = self._embedder
        assert embedder is not None
        ids = [page.page_id for page in changes.added]
        vectors = np.zeros((0, self.index.dims), np.float32)
        if ids:
            vectors = np.concatenate(changes.vectors(embedder))
        index = self.index.updated(
            vectors, ids, changes.deleted, queries=lambda count: recall_vectors(
                lambda q: np.concatenate(embedder.embed_queries(q)), changes.queries,
                self.index.config, count))
        return DenseRetriever(self.encoder, index.in_order(changes.order or index.ids))

    def write_files(self, folder: Path) -> dict[str, Any]:
        (folder / 'encoder').mkdir()
        (folder / 'index').mkdir()
        encoder: dict[str, Any] = {'kind': self.encoder.kind}
        if self._lexical is not None:
            encoder |= self._lexical.write_files(folder / 'encoder')
        else:
            encoder |= {'embedder': self.encoder.fingerprint}
        return {'encoder': encoder, 'index': self.index.write_files(folder / 'index')}

    @classmethod
    def from_files(cls, folder: Path, fields: dict[str, Any],
                   embedders: Sequence[Embedder] = ()) -> 'DenseRetriever':
        try:
            encoder_fields, index_fields = fields['encoder'], fields['index']
            kind = encoder_fields['kind']
        except (KeyError, TypeError) as error:
            raise ArtifactError(f'{folder}: fields of the manifest: {error!r}') from error
        encoder: PageEncoder | Embedder
        if 'embedder' in encoder_fields:
            encoder = find_embedder(encoder_fields['embedder'], kind, embedders)
        else:
            encoder = read_encoder(kind, folder / 'encoder', encoder_fields)
        return cls(encoder, ScannIndex.from_files(folder / 'index', index_fields))


def recall_vectors(encode: Callable[[list[str]], np.ndarray], queries: Sequence[str],
                   config: IndexConfig, pages: int) -> np.ndarray | None:
    """Returns vectors of queries for which the recall of an index of so many pages is measured.

    They are [Q, D], `config.recall_queries` at most; None if there is nothing to measure, or
    no query that anything can match.
    """
    if not queries or pages < config.exact_below or not config.recall_queries:
        return None
    vectors = encode(sample_queries(queries, config.recall_queries))
    vectors = vectors[np.any(vectors != 0, axis=1)]
    return vectors if len(vectors) else None


def _sharing(ids: list[str], scores: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns those hits that share a term with the query; others are in no order of merit."""
    count = int((scores > _NOTHING).sum())
    return ids[:count], scores[:count]
