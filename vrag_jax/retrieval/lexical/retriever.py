"""Retrieval by words over inverted lists: what BM25 and n-grams of many pages share."""

import abc
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.host_threads import in_pieces
from vrag_jax.retrieval.lexical.inverted_lists import InvertedLists, Weighting
from vrag_jax.retrieval.retriever import Changes, Hits, RetrieverKind
from vrag_jax.retrieval.vector_checks import check_rows

_BATCH = 8  # Queries that a thread answers at a time.


class ListsConfig(Protocol):
    """Settings of a retriever over inverted lists, a dataclass."""

    @property
    def weighting(self) -> Weighting:
        """What terms weigh."""


Config = TypeVar('Config', bound=ListsConfig)


class ListsRetriever(RetrieverKind, Generic[Config]):
    """Ranks pages by BM25 of terms, exactly; pages that share no term with a query are no hits.

    Equal scores are in the order of the pages.

    Args:
      lists: of the pages' terms.
      ids: of the pages.
      config: of the lists.
    """

    config_class: ClassVar[type[Any]]
    reads = frozenset({'text'})

    def __init__(self, lists: InvertedLists, ids: Sequence[str], config: Config):
        self.ids = tuple(ids)
        self.config = config
        self.lists = lists
        digest = hashlib.sha256(f'{self.kind} {config}'.encode())
        digest.update(lists.digests.tobytes())
        self.fingerprint = digest.hexdigest()

    @classmethod
    @abc.abstractmethod
    def config_of(cls, config: Any) -> Config:
        """Returns the settings of the lists, of `config.retrieval`."""

    @classmethod
    def build(cls, pages: Changes, config: Any, embedder: None = None) -> Self:
        return cls.of_texts(pages.ids, pages.texts, cls.config_of(config), pages.scratch)

    @classmethod
    def of_texts(cls, ids: Sequence[str], texts: Sequence[str], config: Config | None = None,
                 scratch: Path | None = None) -> Self:
        """Indexes texts.

        Args:
          ids: of the pages.
          texts: of the pages.
          config: by default that of the class.
          scratch: where files are made in which the lists lie until they are saved; None keeps
            them in memory.

        Raises:
          ValueError: if there is not one text an id, an id stands twice, or no text holds a word.
        """
        if len(ids) != len(texts):
            raise ValueError(f'{len(texts)} texts for {len(ids)} pages')
        check_rows(None, tuple(ids))
        config = config or cls.config_class()
        lists = InvertedLists.build(texts, config.weighting, scratch)
        if not lists.terms:
            raise ValueError(f'none of the {len(texts)} page texts holds a word; scanned pages '
                             "have text only with OCR (config.retrieval.ingestion.ocr='auto', of a "
                             'manifest config.retrieval.ocr=True)')
        return cls(lists, ids, config)

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        found = [hit for piece in in_pieces(
            lambda piece: [self.lists.search(query, k, allowed) for query in piece],
            queries, _BATCH) for hit in piece]
        return [[self.ids[row] for row in rows] for rows, _ in found], [s for _, s in found]

    def same_pages(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns pages that no query tells apart though their texts differ.

        Args:
          texts: of the pages, in order.

        Returns:
          Ids of one page of each text, a group for those of the same terms.
        """
        groups: dict[bytes, dict[str, str]] = {}
        for page_id, text, digest in zip(self.ids, texts, self.lists.digests, strict=True):
            groups.setdefault(digest.tobytes(), {}).setdefault(text, page_id)
        return [tuple(group.values()) for group in groups.values() if len(group) > 1]

    def updated(self, changes: Changes) -> Self:
        """See `Retriever`: pages are added and struck out; nothing else is read again."""
        kept = changes.kept_rows(self.ids)
        gone = np.ones(len(self.ids), bool)
        gone[kept] = False
        ids = [*(self.ids[row] for row in kept), *changes.ids]
        lists = self.lists.updated(changes.texts, gone, changes.scratch)
        if changes.order and list(changes.order) != ids:
            place = {page_id: row for row, page_id in enumerate(ids)}
            lists = lists.in_order(np.array([place[page_id] for page_id in changes.order]))
            ids = list(changes.order)
        return type(self)(lists, ids, self.config)

    def matches(self, config: Any, embedder: None = None) -> bool:
        return self.config == self.config_of(config)

    def describe(self) -> list[str]:
        return [f'{self.kind}: {len(self.ids)} pages in inverted lists, searched exactly']

    def write_files(self, folder: Path) -> dict[str, Any]:
        return {**self.lists.write_files(folder), 'ids': list(self.ids),
                'config': dataclasses.asdict(self.config),  # type: ignore[call-overload]
                'fingerprint': self.fingerprint}

    @classmethod
    def load(cls, folder: Path, fields: dict[str, Any], embedders: Any = ()) -> Self:
        try:
            lists = InvertedLists.from_files(
                folder, fields, cls.config_class(**fields['config']).weighting)
            retriever = cls(lists, fields['ids'], cls.config_class(**fields['config']))
            fingerprint = fields['fingerprint']
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f'{folder}: {cls.kind}: {error!r}') from error
        if len(lists) != len(retriever.ids):
            raise ArtifactError(f'{folder}: holds {len(lists)} pages for {len(retriever.ids)} ids')
        if retriever.fingerprint != fingerprint:
            raise ArtifactError(f'{folder}: {cls.kind}: fingerprint {retriever.fingerprint[:12]}, '
                                f'expected {fingerprint[:12]}')
        return retriever
