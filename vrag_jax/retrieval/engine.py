"""Search: a page encoder and an index behind one call, with a query cache."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.retrieval.artifact import ArtifactError, read_artifact, write_artifact
from vrag_jax.retrieval.encoders import PageEncoder, read_encoder
from vrag_jax.retrieval.index import IndexConfig, ScannIndex
from vrag_jax.retrieval.pages import PageStore

_KIND = 'search_engine'


@dataclasses.dataclass(frozen=True)
class Hit:
    """A page that a search found, and its score: larger is better."""

    page_id: str
    score: float


class SearchEngine:
    """Searches the pages of a store by text; safe to use from many threads.

    Args:
      store: the pages.
      encoder: fitted on their texts.
      index: over their vectors.
      cache_size: queries whose hits are kept at most.

    Raises:
      ArtifactError: if index, encoder and store do not belong together.
    """

    def __init__(self, store: PageStore, encoder: PageEncoder, index: ScannIndex,
                 cache_size: int = 65_536):
        if index.encoder != encoder.fingerprint:
            raise ArtifactError(f'the index was made by encoder {index.encoder[:12]!r}, not by '
                                f'{encoder.fingerprint[:12]!r}')
        different = set(index.ids) ^ set(store.ids)
        if different:
            page_id = min(different)
            place = 'index' if page_id in index.ids else 'page store'
            raise ArtifactError(f'only the {place} holds page {page_id!r} ({len(different)} pages '
                                'of index and page store differ)')
        self.store = store
        self.encoder = encoder
        self.index = index
        self._cache_size = cache_size
        self._cache: OrderedDict[tuple[str, int], tuple[Hit, ...]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def build(cls, store: PageStore, texts: Sequence[str], encoder: PageEncoder,
              directory: Path | None = None,
              config: IndexConfig = IndexConfig()) -> 'SearchEngine':  # noqa: B008 (immutable)
        """Fits the encoder on the pages' texts and indexes them.

        Args:
          store: the pages.
          texts: their texts, in the store's order (`text.page_texts`).
          encoder: is fitted here.
          directory: where encoder and index are saved, replacing what is there
            atomically; None saves nothing.
          config: of the index.

        Raises:
          ValueError: if there is not one text a page.
        """
        if len(texts) != len(store):
            raise ValueError(f'{len(texts)} texts for {len(store)} pages')
        encoder.fit(texts)
        index = ScannIndex.build(encoder.encode_pages(texts), store.ids, encoder.fingerprint,
                                 config)
        engine = cls(store, encoder, index)
        if directory is not None:
            write_artifact(directory, _KIND, engine._write_files)
        return engine

    @classmethod
    def open(cls, directory: Path, store: PageStore) -> 'SearchEngine':
        """Reads the directory of `build`.

        Raises:
          FileNotFoundError: if there is none.
          ArtifactError: if it is corrupt, or made for other pages; says what differs.
        """
        folder, fields = read_artifact(directory, _KIND)
        try:
            encoder_fields, index_fields = fields['encoder'], fields['index']
            kind = encoder_fields['kind']
        except (KeyError, TypeError) as error:
            raise ArtifactError(f'{directory}: fields of the manifest: {error!r}') from error
        encoder = read_encoder(kind, folder / 'encoder', encoder_fields)
        engine = cls(store, encoder, ScannIndex.from_files(folder / 'index', index_fields))
        if fields.get('pages') != store.fingerprint:
            raise ArtifactError(f'{directory}: made for pages of the same ids, of which something '
                                f'else (file, size, text, order) has changed in {store.folder}')
        return engine

    def _write_files(self, folder: Path) -> dict[str, Any]:
        (folder / 'encoder').mkdir()
        (folder / 'index').mkdir()
        encoder_fields = self.encoder.write_files(folder / 'encoder')
        return {'pages': self.store.fingerprint,
                'encoder': {'kind': self.encoder.kind, **encoder_fields},
                'index': self.index.write_files(folder / 'index')}

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Finds the best pages of each query.

        Args:
          queries: texts; they are encoded and searched as one batch.
          k: hits a query, at most.

        Returns:
          Hits of each query, best first, no page twice; none for a query that
          shares no term with any page.

        Raises:
          ValueError: if k < 1.
        """
        if k < 1:
            raise ValueError(f'k must be positive, got {k}')
        with self._lock:
            found = {query: self._recall(query, k) for query in queries}
        new = [query for query, hits in found.items() if hits is None]
        if new:
            for query, hits in zip(new, self._search(new, k), strict=True):
                found[query] = hits
            with self._lock:
                for query in new:
                    self._cache[query, k] = found[query] or ()
                while len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
        return [list(found[query] or ()) for query in queries]

    def _recall(self, query: str, k: int) -> tuple[Hit, ...] | None:
        hits = self._cache.get((query, k))
        if hits is not None:
            self._cache.move_to_end((query, k))
        return hits

    def _search(self, queries: list[str], k: int) -> list[tuple[Hit, ...]]:
        vectors = self.encoder.encode_queries(queries)
        matchable = np.any(vectors != 0, axis=1)
        found = zip(*self.index.search_batched(vectors[matchable], k), strict=True)
        return [
            tuple(Hit(i, float(s)) for i, s in zip(*next(found), strict=True)) if able else ()
            for able in matchable.tolist()
        ]
