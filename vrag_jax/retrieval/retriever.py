"""What finds pages for queries: the interface of all kinds of retriever."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.embedding import Embedder, PageContent

Hits = tuple[list[list[str]], list[np.ndarray]]
"""Of each query the ids of pages, best first, and their scores float32."""


def embedded(embedder: Embedder, pages: Sequence[PageContent]) -> Sequence[np.ndarray]:
    """Returns what an embedder makes of pages."""
    return embedder.embed_pages(pages)


@dataclasses.dataclass(frozen=True)
class Changes:
    """What is to be added to a retriever's pages, and taken from them.

    Attributes:
      added: pages that come; none has the id of a page that stays.
      deleted: ids of pages that go.
      pages: returns all pages after the change: those that stay, in order, then those
        added. Asked for by retrievers that have to be fitted again.
      order: ids of all pages after the change, as searches that score every page order equal
        hits; () for the order of `pages`.
      embed: returns an embedder's vectors of pages; by default it makes them.
      scratch: where vectors of tokens are written until they are saved, see
        `TokenStore.build`.
      queries: for which recall is measured where an index is built anew.
    """

    added: Sequence[PageContent]
    deleted: frozenset[str]
    pages: Callable[[], Sequence[PageContent]]
    order: Sequence[str] = ()
    embed: Callable[[Embedder, Sequence[PageContent]], Sequence[np.ndarray]] = embedded
    scratch: Path | None = None
    queries: Sequence[str] = ()

    def vectors(self, embedder: Embedder) -> Sequence[np.ndarray]:
        """Returns an embedder's vectors of the pages that come."""
        return self.embed(embedder, self.added) if self.added else []


class Retriever(Protocol):
    """Finds pages; immutable, and safe to search from many threads."""

    @property
    def kind(self) -> str:
        """Name in files and configs."""

    @property
    def fingerprint(self) -> str:
        """Names what scores pages: equal if and only if scores can be compared."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the pages, in order."""

    @property
    def reads(self) -> frozenset[str]:
        """What its vectors or weights are made of: 'text', 'image' or both."""

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        """Finds the best pages of each query.

        Args:
          queries: texts.
          k: hits a query, at most.
          allowed: bool [pages], in the order of `ids`: which may be found; None for all.

        Returns:
          Ids and scores; none for a query that can match no page.
        """

    def updated(self, changes: Changes) -> 'Retriever':
        """Returns a retriever of other pages; this one goes on working as it is."""

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes files into a folder; returns JSON fields to read them by."""


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
