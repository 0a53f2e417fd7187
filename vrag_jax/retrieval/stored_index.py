"""An index as it is on disk: its retriever, and what that depends on of each page."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.retrieval.artifact import ArtifactError, open_artifact, write_artifact
from vrag_jax.retrieval.embedding import Embedder, PageContent
from vrag_jax.retrieval.pages import Page, PageStore
from vrag_jax.retrieval.retriever import Changes, Retriever, embedded, read_retriever

_KIND = 'search_engine'
_KEYS = 'page_keys.json'
_READS = ('text', 'image')  # In the order of a page's keys.
_FIRST_KIND = 'dense'  # The only one of indices that do not name theirs.


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """What `write_index` wrote.

    Metadata of pages, and their order, are no part of it: they may change.

    Attributes:
      directory: where it is.
      retriever: finds the pages.
      keys: of each page digests of its text, and of what tells its image from another: file,
        size in pixels and in bytes; None in indices of before, which know the whole of their
        pages by a fingerprint.
      fingerprint: of the pages, of indices of before.
    """

    directory: Path
    retriever: Retriever
    keys: Mapping[str, tuple[str, str]] | None
    fingerprint: str = ''

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
          ArtifactError: if it is corrupt, was made for other pages, or needs an embedder
            that is not given; says what differs.
        """
        def read_files(folder: Path, fields: dict[str, Any]) -> 'StoredIndex':
            retriever = read_retriever(fields.get('kind', _FIRST_KIND), folder, fields, embedders)
            keys = None if 'pages' in fields else _read_keys(folder / _KEYS)
            stored = cls(directory, retriever, keys, fields.get('pages', ''))
            if store is not None:
                stored.check(store)
            return stored

        # The retriever goes on reading its files, which are mapped.
        return open_artifact(directory, _KIND, read_files, verify, lambda opened: opened.retriever)

    def check(self, store: PageStore) -> None:
        """Raises an ArtifactError that says what differs if it is not of these pages."""
        check_ids(store, self.retriever)
        if self.keys is None:
            if self.fingerprint != store.fingerprint:
                raise ArtifactError(f'{self.directory}: made for pages of the same ids, of which '
                                    'something else (file, size, text, order) has changed in '
                                    f'{store.folder}')
            return
        for reads in sorted(self.retriever.reads):
            changed = self._changed(store, reads)
            if changed:
                what = 'text' if reads == 'text' else 'image (name, size)'
                raise ArtifactError(f'{self.directory}: made for pages of the same ids, of which '
                                    f'the {what} of {changed[0]!r} and {len(changed) - 1} more '
                                    f'has changed in {store.folder}')

    def changes(self, store: PageStore, pages: Sequence[PageContent],
                reads: Collection[str] | None = None,
                embed: Callable[[Embedder, Sequence[PageContent]], Sequence[np.ndarray]] = embedded,
                scratch: Path | None = None, queries: Sequence[str] = ()) -> Changes:
        """Returns what has changed since the index was written.

        Args:
          store: the pages as they are now.
          pages: their contents, in the store's order.
          reads: what counts of a page, 'text', 'image' or both; None for all that the
            retriever looks at.
          embed, scratch, queries: see `Changes`.

        Raises:
          ArtifactError: of an index of before, which cannot tell.
        """
        if self.keys is None:
            raise ArtifactError(f'{self.directory}: does not say what its pages were')
        changed = {page_id for name in reads or self.retriever.reads
                   for page_id in self._changed(store, name)}
        return Changes(
            [page for page in pages if page.page_id in changed or page.page_id not in self.keys],
            frozenset(changed | (set(self.keys) - set(store.ids))), lambda: pages, store.ids,
            embed, scratch, queries)

    def updated(self, store: PageStore, pages: Sequence[PageContent],
                scratch: Path | None = None, queries: Sequence[str] = ()) -> Retriever:
        """Returns a retriever of the pages as they are now; see `changes`."""
        changes = self.changes(store, pages, scratch=scratch, queries=queries)
        if not changes.added and not changes.deleted:
            return self.retriever
        return self.retriever.updated(changes)

    def _changed(self, store: PageStore, reads: str) -> list[str]:
        """Ids of pages that are still there and look different to who reads this."""
        assert self.keys is not None
        place = _READS.index(reads)
        return [page.page_id for page in store if page.page_id in self.keys
                and self.keys[page.page_id][place] != _key_of(store, page, reads)]


def write_index(directory: Path, store: PageStore, retriever: Retriever) -> None:
    """Writes the index of a store's pages, replacing one that is there atomically."""
    def write(folder: Path) -> dict[str, Any]:
        keys = {page.page_id: [_key_of(store, page, reads) for reads in _READS]
                for page in store}
        (folder / _KEYS).write_text(json.dumps(keys, ensure_ascii=False), 'utf-8')
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


def _read_keys(file: Path) -> dict[str, tuple[str, str]]:
    try:
        return {i: (text, image) for i, (text, image) in json.loads(
            file.read_text('utf-8')).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f'{file}: {error!r}') from error


def _key_of(store: PageStore, page: Page, reads: str) -> str:
    if reads == 'text' and page.text is not None:
        return _digest(page.text)
    try:
        size = store.path(page.page_id).stat().st_size
    except OSError:
        size = -1  # Nobody has looked at it then.
    return _digest(json.dumps([page.file, page.width, page.height, size]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]
