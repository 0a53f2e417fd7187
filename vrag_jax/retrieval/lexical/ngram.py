"""Retrieval by n-grams: as vectors of few pages, as inverted lists of many."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.host_threads import in_pieces
from vrag_jax.retrieval.lexical.ngram_encoder import NgramConfig, NgramEncoder
from vrag_jax.retrieval.lexical.retriever import ListsRetriever
from vrag_jax.retrieval.retriever import Changes, Hits, RetrieverKind
from vrag_jax.retrieval.single_vector.index import IndexConfig, ScannIndex
from vrag_jax.retrieval.single_vector.retriever import (
    DenseRetriever,
    check_encoder,
    describe_index,
    recall_vectors,
    search_vectors,
)
from vrag_jax.retrieval.vector_checks import shared_vectors, tell_groups

_LOG = logging.getLogger(__name__)
_NOTHING = 1e-6  # Score of unit vectors that texts without a common term may have by rounding.


class NgramListsRetriever(ListsRetriever[NgramConfig]):
    """Ranks pages as the vectors of `NgramEncoder` do, of any number of pages."""

    name = 'ngram'
    kind = 'ngram_lists'
    config_class = NgramConfig

    @classmethod
    def config_of(cls, config: Any) -> NgramConfig:
        return config.encoder


class NgramVectorsRetriever(RetrieverKind):
    """Searches the vectors of an `NgramEncoder`, which learns from the pages, in a ScaNN index.

    Args:
      encoder: fitted on the pages' texts.
      index: over the pages' vectors.

    Raises:
      ArtifactError: if the index was made by another encoder.
    """

    name = NgramListsRetriever.name
    kind = DenseRetriever.kind  # Files of both are the same but for the encoder.
    reads = frozenset({'text'})

    def __init__(self, encoder: NgramEncoder, index: ScannIndex):
        check_encoder(index, encoder.fingerprint)
        self.encoder = encoder
        self.index = index
        self.ids = index.ids
        self.fingerprint = encoder.fingerprint

    @classmethod
    def build(cls, pages: Changes, config: Any, embedder: None = None) -> RetrieverKind:
        """See `RetrieverKind`: vectors of few pages, lists of many."""
        return fit_words(NgramEncoder(config.encoder), pages.ids, pages.texts, config.index,
                         pages.queries, pages.scratch)

    @classmethod
    def fit(cls, encoder: NgramEncoder, ids: Sequence[str], texts: Sequence[str],
            config: IndexConfig = IndexConfig(),  # noqa: B008 (immutable)
            queries: Sequence[str] = ()) -> 'NgramVectorsRetriever':
        """Fits an encoder on the pages' texts and indexes them.

        Args:
          encoder: is fitted here.
          ids: of the pages.
          texts: of the pages.
          config: of the index.
          queries: for which recall is measured, `config.recall_queries` of them at most;
            by default for vectors of pages, perturbed.
        """
        encoder.fit(texts)
        vectors = encoder.encode_pages(texts)
        _warn_of(shared_vectors(vectors, ids, texts))
        given = recall_vectors(encoder.encode_queries, queries, config, len(ids))
        return cls(encoder, ScannIndex.build(vectors, ids, encoder.fingerprint, config,
                                             queries=given))

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        found = in_pieces(lambda piece: search_vectors(
            self.index, self.encoder.encode_queries(piece), k, allowed), queries)
        hits = [_sharing(*hit) for piece in found for hit in zip(*piece, strict=True)]
        return [ids for ids, _ in hits], [scores for _, scores in hits]

    def updated(self, changes: Changes) -> RetrieverKind:
        """See `Retriever`: weights of terms depend on all pages, and are learnt anew."""
        pages = changes.pages()
        return fit_words(copy.copy(self.encoder), [page.page_id for page in pages],
                         [page.text for page in pages], self.index.config, changes.queries,
                         changes.scratch)

    def matches(self, config: Any, embedder: None = None) -> bool:
        return self.encoder.config == config.encoder and self.index.config == config.index

    def describe(self) -> list[str]:
        return describe_index(self, self.index, self.encoder.kind)

    def write_files(self, folder: Path) -> dict[str, Any]:
        (folder / 'encoder').mkdir()
        (folder / 'index').mkdir()
        return {'encoder': {'kind': self.encoder.kind,
                            **self.encoder.write_files(folder / 'encoder')},
                'index': self.index.write_files(folder / 'index')}

    @classmethod
    def reads_files(cls, fields: dict[str, Any]) -> bool:
        return 'embedder' not in fields.get('encoder', ())

    @classmethod
    def load(cls, folder: Path, fields: dict[str, Any], embedders: Any = ()
             ) -> 'NgramVectorsRetriever':
        try:
            encoder, index = fields['encoder'], fields['index']
            kind = encoder['kind']
        except (KeyError, TypeError) as error:
            raise ArtifactError(f'{folder}: fields of the manifest: {error!r}') from error
        if kind != NgramEncoder.kind:
            raise ArtifactError(f'{folder}: encoder {kind!r} is unknown; there is '
                                f'{NgramEncoder.kind!r}')
        return cls(NgramEncoder.from_files(folder / 'encoder', encoder),
                   ScannIndex.from_files(folder / 'index', index))


def fit_words(encoder: NgramEncoder, ids: Sequence[str], texts: Sequence[str],
              config: IndexConfig = IndexConfig(),  # noqa: B008 (immutable)
              queries: Sequence[str] = (), scratch: Path | None = None) -> RetrieverKind:
    """Returns a retriever of texts: by an encoder's vectors, or by lists where it has too many.

    Pages that no query tells apart are a warning that names them.

    Args:
      encoder: is fitted here where vectors are made.
      ids: of the pages.
      texts: of the pages.
      config: of the index of vectors.
      queries: for which its recall is measured.
      scratch: see `ListsRetriever.of_texts`.
    """
    if len(texts) <= encoder.config.dims:
        return NgramVectorsRetriever.fit(encoder, ids, texts, config, queries)
    lists = NgramListsRetriever.of_texts(ids, texts, encoder.config, scratch)
    _warn_of(lists.same_pages(texts))
    return lists


def _warn_of(groups: Sequence[Sequence[str]]) -> None:
    if groups:
        _LOG.warning('no search by words tells these pages apart: %s', tell_groups(groups))


def _sharing(ids: list[str], scores: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns those hits that share a term with the query; others are in no order of merit."""
    count = int((scores > _NOTHING).sum())
    return ids[:count], scores[:count]
