"""Retrieval by one vector a page: that of an embedder, or of an encoder of words (`lexical`)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.embedders.interface import Embedder
from vrag_jax.retrieval.retriever import (
    Changes,
    Hits,
    Retriever,
    RetrieverKind,
    find_embedder,
    sample_queries,
    told_recall,
)
from vrag_jax.retrieval.single_vector.index import IndexConfig, ScannIndex


class DenseRetriever(RetrieverKind):
    """Searches the vectors that an embedder made of pages, in a ScaNN index.

    Args:
      embedder: of single vectors.
      index: over the pages' vectors.

    Raises:
      ArtifactError: if the index was made by another embedder.
    """

    name = 'single_vector'
    kind = 'dense'
    vectors = 'one'
    embedder: Embedder

    def __init__(self, embedder: Embedder, index: ScannIndex):
        check_encoder(index, embedder.fingerprint)
        self.embedder = embedder
        self.index = index
        self.ids = index.ids
        self.fingerprint = embedder.fingerprint
        self.reads = frozenset({embedder.reads})

    @classmethod
    def build(cls, pages: Changes, config: Any, embedder: Embedder) -> Self:
        return cls.of_vectors(embedder, pages.ids, np.concatenate(pages.vectors(embedder)),
                              config.index, pages.queries)

    @classmethod
    def of_vectors(cls, embedder: Embedder, ids: Sequence[str], vectors: np.ndarray,
                   config: IndexConfig = IndexConfig(),  # noqa: B008 (immutable)
                   queries: Sequence[str] = ()) -> Self:
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

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        if not queries:
            return [], []
        return search_vectors(
            self.index, np.concatenate(self.embedder.embed_queries(queries)), k, allowed)

    def updated(self, changes: Changes) -> Self:
        if not changes:
            return self
        vectors = np.zeros((0, self.index.dims), np.float32)
        if changes.added:
            vectors = np.concatenate(changes.vectors(self.embedder))
        index = self.index.updated(
            vectors, changes.ids, changes.removed, queries=lambda count: recall_vectors(
                lambda q: np.concatenate(self.embedder.embed_queries(q)), changes.queries,
                self.index.config, count))
        return type(self)(self.embedder, index.in_order(changes.order or index.ids))

    def matches(self, config: Any, embedder: Embedder) -> bool:
        return self.fingerprint == embedder.fingerprint and self.index.config == config.index

    def describe(self) -> list[str]:
        return describe_index(self, self.index, self.embedder.kind)

    def write_files(self, folder: Path) -> dict[str, Any]:
        (folder / 'encoder').mkdir()
        (folder / 'index').mkdir()
        return {'encoder': {'kind': self.embedder.kind, 'embedder': self.fingerprint},
                'index': self.index.write_files(folder / 'index')}

    @classmethod
    def reads_files(cls, fields: dict[str, Any]) -> bool:
        return 'embedder' in fields.get('encoder', ())

    @classmethod
    def load(cls, folder: Path, fields: dict[str, Any], embedders: Sequence[Embedder] = ()
             ) -> Self:
        try:
            encoder, index = fields['encoder'], fields['index']
            kind, fingerprint = encoder['kind'], encoder['embedder']
        except (KeyError, TypeError) as error:
            raise ArtifactError(f'{folder}: fields of the manifest: {error!r}') from error
        return cls(find_embedder(fingerprint, kind, embedders),
                   ScannIndex.from_files(folder / 'index', index))


def check_encoder(index: ScannIndex, fingerprint: str) -> None:
    """Raises an ArtifactError unless an index was made by the encoder of this fingerprint."""
    if index.encoder != fingerprint:
        raise ArtifactError(f'the index was made by encoder {index.encoder[:12]!r}, not by '
                            f'{fingerprint[:12]!r}')


def describe_index(retriever: Retriever, index: ScannIndex, encoder: str) -> list[str]:
    """Returns the line of a retriever that searches the vectors of an encoder of that kind."""
    return told_recall(f'{encoder}, {retriever.kind}: {len(index)} pages, {index.dims} dimensions',
                       index.exact, index.recall)


def search_vectors(index: ScannIndex, vectors: np.ndarray, k: int, allowed: np.ndarray | None
                   ) -> Hits:
    """Finds pages for vectors of queries, [Q, D] float32; one that is all zeros finds none."""
    matchable = np.any(vectors != 0, axis=1)
    found = iter(zip(*index.search_batched(vectors[matchable], k, allowed), strict=True))
    none: tuple[list[str], np.ndarray] = [], np.zeros(0, np.float32)
    hits = [next(found) if able else none for able in matchable.tolist()]
    return [ids for ids, _ in hits], [scores for _, scores in hits]


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
