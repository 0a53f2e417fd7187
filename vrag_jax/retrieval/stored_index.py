"""An index as it is on disk: its retriever, and what its pages were when it was written."""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.corpus.artifact import (
    MANIFEST,
    ArtifactError,
    open_artifact,
    write_artifact,
)
from vrag_jax.corpus.identity import ImageStamp, PageIdentity, identities, page_changes
from vrag_jax.corpus.pages import PageStore
from vrag_jax.embedders.interface import Embedder, PageContent
from vrag_jax.retrieval.kinds import read_retriever
from vrag_jax.retrieval.retriever import Changes, Retriever, embedded

_KIND = 'search_engine'
_PAGES = 'page_keys.json'


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """What `write_index` wrote.

    Metadata of pages, and their order, are no part of it: they may change.

    Attributes:
      directory: where it is.
      retriever: finds the pages.
      pages: what each page was.
    """

    directory: Path
    retriever: Retriever
    pages: Mapping[str, PageIdentity]

    @classmethod
    def read(cls, directory: Path, embedders: Sequence[Embedder] = (),
             store: PageStore | None = None, verify: bool = False) -> 'StoredIndex':
        """Reads an index.

        Args:
          directory: of the index.
          embedders: that made the vectors in it, found by their fingerprints.
          store: whose pages it has to be of; None for whichever.
          verify: compute the checksums of large files, too, see `artifact`.

        Raises:
          FileNotFoundError: if there is none.
          ArtifactError: if it is corrupt, was made for other pages or by a release whose indices
            are read no more, or needs an embedder that is not given; says what differs.
        """
        def read_files(folder: Path, fields: dict[str, Any]) -> 'StoredIndex':
            retriever = read_retriever(fields.get('kind', ''), folder, fields, embedders)
            pages = _read_pages(folder / _PAGES)
            if 'image' in retriever.reads and not all(page.stamp for page in pages.values()):
                raise ArtifactError(_earlier(folder))
            stored = cls(directory, retriever, pages)
            if store is not None:
                stored.check(store)
            return stored

        # The retriever goes on reading its files, which are mapped.
        return open_artifact(directory, _KIND, read_files, verify, lambda opened: opened.retriever)

    def check(self, store: PageStore) -> None:
        """Raises an ArtifactError that says what differs if it is not of these pages."""
        check_ids(store, self.retriever)
        now = identities(store, self.retriever.reads, self.pages)
        for reads in sorted(self.retriever.reads):
            changed = page_changes(self.pages, now, [reads]).added
            if changed:
                raise ArtifactError(f'{self.directory}: made for pages of the same ids, of which '
                                    f'the {reads} of {changed[0]!r} and {len(changed) - 1} more '
                                    f'has changed in {store.folder}')

    def changes(self, store: PageStore, contents: Sequence[PageContent], reads: Collection[str],
                embed: Callable[[Embedder, Sequence[PageContent]], Sequence[np.ndarray]] = embedded,
                scratch: Path | None = None, queries: Sequence[str] = ()) -> Changes:
        """Returns what has changed since the index was written.

        Args:
          store: the pages as they are now.
          contents: of the pages, in the store's order.
          reads: what counts of a page, 'text', 'image' or both.
          embed, scratch, queries: see `Changes`.
        """
        found = page_changes(self.pages, identities(store, reads, self.pages), reads)
        added = set(found.added)
        return Changes([page for page in contents if page.page_id in added], found.removed,
                       lambda: contents, store.ids, embed, scratch, queries)


def write_index(directory: Path, store: PageStore, retriever: Retriever) -> None:
    """Writes the index of a store's pages, replacing one that is there atomically."""
    def write(folder: Path) -> dict[str, Any]:
        pages = identities(store, retriever.reads, _last_pages(directory))
        (folder / _PAGES).write_text(json.dumps(pages, ensure_ascii=False), 'utf-8')
        return {**retriever.write_files(folder), 'kind': retriever.kind}

    write_artifact(directory, _KIND, write)


def check_ids(store: PageStore, retriever: Retriever) -> None:
    """Raises an ArtifactError unless a retriever's pages are those of a store."""
    different = set(retriever.ids) ^ set(store.ids)
    if different:
        page_id = min(different)
        place = 'index' if page_id not in store else 'page store'
        raise ArtifactError(f'only the {place} holds page {page_id!r} ({len(different)} pages '
                            'of index and page store differ)')


def _read_pages(file: Path) -> dict[str, PageIdentity]:
    try:
        return {page_id: PageIdentity(text, image, stamp and ImageStamp(*stamp))
                for page_id, (text, image, stamp) in json.loads(file.read_text('utf-8')).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f'{_earlier(file.parent)} ({error!r})') from error


def _earlier(folder: Path) -> str:
    return (f'{folder}: does not say what its pages were, as indices of earlier releases do not; '
            'build it again by the task build_index in its workdir')


def _last_pages(directory: Path) -> Mapping[str, PageIdentity]:
    """Returns what pages were when the index that is there was written, {} if there is none."""
    try:
        data = json.loads((directory / MANIFEST).read_text('utf-8'))['data']
        return _read_pages(directory / data / _PAGES)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
