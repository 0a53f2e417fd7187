"""What finds pages for queries: the interface of all kinds of retriever."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.embedders.interface import Embedder, PageContent
from vrag_jax.retrieval.vector_checks import check_rows

Hits = tuple[list[list[str]], list[np.ndarray]]
"""Of each query the ids of pages, best first, and their scores float32."""

QuerySizes = Callable[[Embedder], Iterable[tuple[int, str]]]
"""Numbers of queries, and a query each: of all sizes for which a model compiles a program."""


def embedded(embedder: Embedder, pages: Sequence[PageContent]) -> Sequence[np.ndarray]:
    """Returns what an embedder makes of pages."""
    return embedder.embed_pages(pages)


@dataclasses.dataclass(frozen=True)
class Changes:
    """What is to be added to a retriever's pages, and taken from them.

    To build a retriever is to add all pages to none.

    Attributes:
      added: pages that come; none has the id of a page that stays.
      removed: ids of pages that go.
      pages: returns all pages after the change: those that stay, in order, then those
        added. Asked for by retrievers that have to be fitted again.
      order: ids of all pages after the change, as searches that score every page order equal
        hits; () for the order of `pages`.
      embed: returns an embedder's vectors of pages; by default it makes them.
      scratch: where large files are written until they are saved, see `TokenStore.build`.
      queries: for which recall is measured where an index is built anew.
    """

    added: Sequence[PageContent]
    removed: frozenset[str]
    pages: Callable[[], Sequence[PageContent]]
    order: Sequence[str] = ()
    embed: Callable[[Embedder, Sequence[PageContent]], Sequence[np.ndarray]] = embedded
    scratch: Path | None = None
    queries: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)

    @property
    def ids(self) -> list[str]:
        """Ids of the pages that come."""
        return [page.page_id for page in self.added]

    @property
    def texts(self) -> list[str]:
        """Texts of the pages that come."""
        return [page.text for page in self.added]

    def vectors(self, embedder: Embedder) -> Sequence[np.ndarray]:
        """Returns an embedder's vectors of the pages that come."""
        return self.embed(embedder, self.added) if self.added else []

    def kept_rows(self, ids: Sequence[str]) -> np.ndarray:
        """Returns which rows of a retriever stay, int64, ascending.

        Args:
          ids: of its pages.

        Raises:
          ValueError: if an id to remove is not among them, one to add stays, or no page is left.
        """
        missing = self.removed.difference(ids)
        if missing:
            raise ValueError(f'id {min(missing)!r} is not in the index ({len(missing)} of '
                             f'{len(self.removed)} ids to remove)')
        kept = [row for row, page_id in enumerate(ids) if page_id not in self.removed]
        after = (*(ids[row] for row in kept), *self.ids)
        check_rows(None, after)
        if not after:
            raise ValueError('nothing would be left in the index')
        return np.array(kept, np.int64)


class Retriever(abc.ABC):
    """Finds pages; immutable, and safe to search from many threads.

    Attributes:
      kind: name in files.
      ids: of the pages, in order.
      fingerprint: names what scores pages: equal if and only if scores can be compared.
      reads: what its vectors or weights are made of: 'text', 'image' or both.
      embedder: model on a device that is asked in each search; None if there is none.
    """

    kind: ClassVar[str]
    embedder: Embedder | None = None
    ids: tuple[str, ...]
    fingerprint: str
    reads: frozenset[str]

    @abc.abstractmethod
    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        """Finds the best pages of each query.

        Args:
          queries: texts.
          k: hits a query, at most.
          allowed: bool [pages], in the order of `ids`: which may be found; None for all.

        Returns:
          Ids and scores; none for a query that can match no page.
        """

    @abc.abstractmethod
    def updated(self, changes: Changes) -> 'Retriever':
        """Returns a retriever of other pages; this one goes on working as it is."""

    @abc.abstractmethod
    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes files into a folder; returns JSON fields to read them by."""

    @property
    def parts(self) -> tuple['Retriever', ...]:
        """Those that are fused in it, or itself."""
        return (self,)

    def describe(self) -> list[str]:
        """Returns a line a retriever: what it searches, how, and the recall that was measured."""
        return [f'{self.kind}: {len(self.ids)} pages']

    def warm_up(self, sizes: QuerySizes, k: int) -> None:
        """Searches for `k` pages with queries of all sizes, for which programs are compiled."""
        if self.embedder is not None:
            for count, query in sizes(self.embedder):
                self.search([query] * count, k)


class RetrieverKind(Retriever):
    """A retriever that a config can name, or that searches what an embedder makes.

    Several classes may share a name, of which one is built, depending on the pages. See
    `kinds.register`.

    Attributes:
      name: in configs.
      vectors: what it searches of an embedder, whose `retriever` is its name: one vector a page or
        several; '' if it needs none.
      settings: dataclass of `config.retrieval.kinds[name]`, where its settings are no fields of
        `config.retrieval`.
    """

    name: ClassVar[str]
    vectors: ClassVar[Literal['', 'one', 'several']] = ''
    settings: ClassVar[type | None] = None

    @classmethod
    @abc.abstractmethod
    def build(cls, pages: Changes, config: Any, embedder: Any) -> Retriever:
        """Makes a retriever of all pages.

        Args:
          pages: all of them are added.
          config: `config.retrieval`, of which a kind reads its own settings.
          embedder: that makes vectors, an `Embedder`; None for a kind that needs none.
        """

    @classmethod
    @abc.abstractmethod
    def load(cls, folder: Path, fields: dict[str, Any], embedders: Sequence[Embedder] = ()
             ) -> Retriever:
        """Reads what `write_files` wrote.

        Args:
          folder: with the files.
          fields: that `write_files` returned.
          embedders: whose weights are not in the files; found by their fingerprints.

        Raises:
          ArtifactError: for wrong files, or an embedder that is not given.
        """

    @classmethod
    def reads_files(cls, fields: dict[str, Any]) -> bool:
        """Whether files of its `kind` are of this class: other classes may have that kind, too."""
        return True

    @abc.abstractmethod
    def matches(self, config: Any, embedder: Any) -> bool:
        """Whether `build` would make one with the same settings; see there."""


def told_recall(told: str, exact: bool, recall: dict[str, Any] | None) -> list[str]:
    """Returns the line of a retriever: what is `told` of it, and how good its search is."""
    if exact:
        return [f'{told}, searched exactly']
    if not recall:
        return [f'{told}, recall not measured']
    return [f'{told}, recall@{recall["k"]} of the index against exact search with the same vectors '
            f'{recall["recall"]:.3f}, by {recall["queries"]} queries']


def find_embedder(fingerprint: str, kind: str, embedders: Sequence[Embedder]) -> Embedder:
    """Returns the embedder of that fingerprint.

    Raises:
      ArtifactError: if it is not among them.
    """
    for embedder in embedders:
        if embedder.fingerprint == fingerprint:
            return embedder
    given = ', '.join(f'{e.kind} {e.fingerprint[:12]}' for e in embedders) or 'none'
    raise ArtifactError(f'the index was made by embedder {kind} {fingerprint[:12]}, which is to be '
                        f'given to open it; given: {given}')


def sample_queries(queries: Sequence[str], count: int) -> list[str]:
    """Returns different queries, `count` at most, taken evenly from all of them."""
    different = list(dict.fromkeys(queries))
    step = max(len(different) / max(count, 1), 1)
    return [different[int(n * step)] for n in range(min(count, len(different)))]
