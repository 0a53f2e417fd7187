"""Search over a page store: filters, a query cache, and concurrent callers in one batch."""

import dataclasses
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.embedders.interface import Embedder, PageContent
from vrag_jax.retrieval.call_batching import MicroBatcher
from vrag_jax.retrieval.filters import Filters, PageFields, normalised
from vrag_jax.retrieval.hits import Hit, HitCache, PackedHits
from vrag_jax.retrieval.page_references import NamedPages
from vrag_jax.retrieval.retriever import Changes, Retriever
from vrag_jax.retrieval.stored_index import StoredIndex, check_ids, write_index

CACHE_BYTES = 64 << 20  # Of hits, by default: of 170,000 queries for ten pages each.


class SearchCounts:
    """What an engine was asked and has done so far; safe to use from many threads.

    Attributes:
      queries: that were asked for.
      known: of them, whose hits were in the cache.
      batches: searches that were carried out, by the bit length of their number of queries:
        the first of a single query, the next of 2 or 3, then of 4 to 7, ...
      searched: queries in them.
    """

    def __init__(self) -> None:
        self.queries = 0
        self.known = 0
        self.batches = [0] * 17
        self.searched = 0
        self._lock = threading.Lock()

    def asked(self, queries: int, known: int) -> None:
        """Counts a call."""
        with self._lock:
            self.queries += queries
            self.known += known

    def batch(self, queries: int) -> None:
        """Counts a search that was carried out."""
        with self._lock:
            self.batches[min(queries.bit_length(), len(self.batches)) - 1] += 1
            self.searched += queries


class SearchEngine:
    """Searches the pages of a store by text; safe to use from many threads.

    Args:
      store: the pages.
      retriever: finds them.
      cache_bytes: memory in which hits of queries are kept, at most.

    Attributes:
      counts: what it was asked and has done.

    Raises:
      ArtifactError: if retriever and store do not belong together.
    """

    def __init__(self, store: PageStore, retriever: Retriever, cache_bytes: int = CACHE_BYTES):
        self.counts = SearchCounts()
        self._state = _State(store, retriever, cache_bytes, self.counts)
        self._cache_bytes = cache_bytes
        self._changing = threading.Lock()
        self._batcher: MicroBatcher[_Request, dict[str, PackedHits]] = MicroBatcher(
            _answer_all)

    @classmethod
    def open(cls, directory: Path, store: PageStore, embedders: Sequence[Embedder] = (),
             cache_bytes: int = CACHE_BYTES, verify: bool = False) -> 'SearchEngine':
        """Reads the directory of `save`.

        Args:
          directory: what was saved.
          store: the same pages, in any order; own fields may be others.
          embedders: that made the vectors in it, found by their fingerprints.
          cache_bytes: memory in which hits of queries are kept, at most.
          verify: compute the checksums of large files, too, see `artifact`.

        Raises:
          FileNotFoundError: if there is none.
          ArtifactError: if it is corrupt, was made for other pages, or needs an embedder
            that is not given; says what differs.
        """
        stored = StoredIndex.read(directory, embedders, store, verify)
        return cls(store, stored.retriever, cache_bytes)

    def save(self, directory: Path) -> None:
        """Writes the retriever to a directory, replacing one that is there atomically."""
        state = self._state
        write_index(directory, state.store, state.retriever)

    @property
    def store(self) -> PageStore:
        """The pages that are searched."""
        return self._state.store

    @property
    def retriever(self) -> Retriever:
        """What finds them."""
        return self._state.retriever

    def search(self, queries: Sequence[str], k: int, filters: Filters | None = None
               ) -> list[list[Hit]]:
        """Finds the best pages of each query.

        Pages that a query names by number ('page 14') come first, see `NamedPages`.

        Args:
          queries: texts; they are searched as one batch, with those of other threads
            that search at the same time.
          k: hits a query, at most.
          filters: values, or sequences of values, of 'page_id', 'document', 'page' and
            fields of the pages' metadata; a page has to match each field, with any of
            its values.

        Returns:
          Hits of each query, best first, no page twice; none for a query that
          matches no page.

        Raises:
          ValueError: if k < 1, a filter's value is of no type that a field can have, or no
            page has the field.
        """
        return [list(hits) for hits in self.find(queries, k, filters)]

    def find(self, queries: Sequence[str], k: int, filters: Filters | None = None
             ) -> list[PackedHits]:
        """Returns the hits of `search` in little memory, for those who do not need all at once."""
        if k < 1:
            raise ValueError(f'k must be positive, got {k}')
        wanted = normalised(filters)
        state = self._state
        state.fields.check(wanted)
        found = state.cache.get(queries, k, wanted)
        new = tuple(query for query, hits in found.items() if hits is None)
        self.counts.asked(len(found), len(found) - len(new))
        if new:
            found |= self._batcher(_Request(state, new, k, wanted))
        return [found[query] or PackedHits(()) for query in queries]

    def add(self, pages: Sequence[Page], texts: Sequence[str] | None = None,
            scratch: Path | None = None) -> None:
        """Adds pages; searches see all of them or none.

        Vectors of models are added to the index; lexical weights, which depend on all
        pages, are computed again, for which the text of every page must be known.

        Args:
          pages: new pages, of files relative to the store's folder.
          texts: their texts; by default those that the pages name, or ''.
          scratch: where vectors of tokens are written until `save`: best on the file system
            of the index, which then links the files; by default the system's folder for
            temporary files.

        Raises:
          ValueError: if a page is there already; nothing has changed then.
        """
        if texts is not None and len(texts) != len(pages):
            raise ValueError(f'{len(texts)} texts for {len(pages)} pages')
        self._change(pages, texts, frozenset(), scratch)

    def delete(self, page_ids: Collection[str], scratch: Path | None = None) -> None:
        """Takes pages out of search, as `add` puts them in.

        Raises:
          ValueError: if a page is not there, or none would be left.
        """
        self._change((), None, frozenset(page_ids), scratch)

    def _change(self, pages: Sequence[Page], texts: Sequence[str] | None,
                deleted: frozenset[str], scratch: Path | None) -> None:
        with self._changing:
            state = self._state
            unknown = deleted - set(state.store.ids)
            if unknown:
                raise ValueError(f'no page {min(unknown)!r} to delete')
            if texts is not None:
                pages = [dataclasses.replace(page, text=text)
                         for page, text in zip(pages, texts, strict=True)]
            kept = [page for page in state.store if page.page_id not in deleted]
            if not kept and not pages:
                raise ValueError('no page would be left')
            store = PageStore(state.store.folder, [*kept, *pages], lease=state.store.lease)
            retriever = state.retriever.updated(Changes(
                [_content(store, page, 'text' in state.retriever.reads) for page in pages], deleted,
                lambda: [_content(store, page, needs_text=True) for page in store],
                store.ids, scratch=scratch))
            self._state = _State(store, retriever, self._cache_bytes, self.counts)


class _State:
    """Pages, what finds them, and hits that are known: replaced as a whole on changes."""

    def __init__(self, store: PageStore, retriever: Retriever, cache_bytes: int,
                 counts: SearchCounts):
        check_ids(store, retriever)
        self.store = store
        self.retriever = retriever
        self.fields = PageFields([store[page_id] for page_id in retriever.ids])
        self._named = NamedPages(store, retriever.ids)
        self._ids = retriever.ids
        self._numbers = {page_id: number for number, page_id in enumerate(self._ids)}
        self._counts = counts
        self.cache = HitCache(self._ids, cache_bytes)

    def search(self, queries: Sequence[str], k: int, wanted: Any) -> dict[str, PackedHits]:
        """Returns the hits of each query, and remembers them."""
        self._counts.batch(len(queries))
        allowed = self.fields.matching(wanted)
        ids, scores = self._named.search(self.retriever, queries, k, allowed)
        found = {query: PackedHits.pack(self._ids, self._numbers, pages, values)
                 for query, pages, values in zip(queries, ids, scores, strict=True)}
        self.cache.put(found, k, wanted)
        return found


@dataclasses.dataclass(frozen=True)
class _Request:
    state: _State
    queries: tuple[str, ...]
    k: int
    wanted: Any


def _answer_all(requests: Sequence[_Request]) -> list[dict[str, PackedHits]]:
    """Answers requests: those that want the same of the same pages in one search."""
    groups: dict[tuple[int, int, Any], list[_Request]] = {}
    for request in requests:
        groups.setdefault((id(request.state), request.k, request.wanted), []).append(request)
    answers = {}
    for key, group in groups.items():
        queries = list(dict.fromkeys(query for request in group for query in request.queries))
        answers[key] = group[0].state.search(queries, group[0].k, group[0].wanted)
    return [{query: answers[id(r.state), r.k, r.wanted][query] for query in r.queries}
            for r in requests]


def _content(store: PageStore, page: Page, needs_text: bool = False) -> PageContent:
    if needs_text and page.text is None:
        raise ValueError(f'the text of page {page.page_id!r} is not known, on which lexical '
                         'weights depend')
    return PageContent(page.page_id, page.text or '', lambda: store.image(page.page_id),
                       (page.width, page.height))
