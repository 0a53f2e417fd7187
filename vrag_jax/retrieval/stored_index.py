"""An index as it is on disk: its retriever, and what that depends on of each page."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vrag_jax.corpus.artifact import (
    MANIFEST,
    ArtifactError,
    open_artifact,
    write_artifact,
)
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.retrieval.embedding import Embedder, PageContent
from vrag_jax.retrieval.kinds import read_retriever
from vrag_jax.retrieval.retriever import Changes, Retriever, embedded

_KIND = 'search_engine'
_KEYS = 'page_keys.json'
_FIRST_KIND = 'dense'  # The only one of indices that do not name theirs.


class ImageStamp(NamedTuple):
    """What an image file was: it is hashed again only where size or time are others."""

    size: int  # In bytes.
    mtime_ns: int
    sha256: str


class PageKeys(NamedTuple):
    """What a page looked like to those who read its text, and to those who read its image.

    Attributes:
      text: digest of its text; that of its image where the text has to be read from it.
      image: digest of its image's size in pixels and content; where nobody read it, and in
        indices of before, of its file's name, size in pixels and size in bytes.
      stamp: of the image file; None where `image` is not of its content.
    """

    text: str
    image: str
    stamp: ImageStamp | None = None


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """What `write_index` wrote.

    Metadata of pages, and their order, are no part of it: they may change.

    Attributes:
      directory: where it is.
      retriever: finds the pages.
      keys: of each page what it looked like; None in indices of before, which know the whole
        of their pages by a fingerprint.
      fingerprint: of the pages, of indices of before.
    """

    directory: Path
    retriever: Retriever
    keys: Mapping[str, PageKeys] | None
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
                raise ArtifactError(f'{self.directory}: made for pages of the same ids, of which '
                                    f'the {reads} of {changed[0]!r} and {len(changed) - 1} more '
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
        changed = []
        for page in store:
            known = self.keys.get(page.page_id)
            if known is not None:
                key = known.text if reads == 'text' else known.image
                if key != _key_of(store, page, reads, known.stamp):
                    changed.append(page.page_id)
        return changed


def write_index(directory: Path, store: PageStore, retriever: Retriever) -> None:
    """Writes the index of a store's pages, replacing one that is there atomically."""
    def write(folder: Path) -> dict[str, Any]:
        known = _last_stamps(directory)
        keys = {}
        for page in store:
            stamp = None
            if 'image' in retriever.reads or page.text is None:
                stamp = _stamp(store.path(page.page_id), known.get(page.page_id))
            keys[page.page_id] = PageKeys(_key_of(store, page, 'text', stamp),
                                          _key_of(store, page, 'image', stamp), stamp)
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


def _read_keys(file: Path) -> dict[str, PageKeys]:
    try:
        return {page_id: PageKeys(text, image, *(ImageStamp(*stamp) for stamp in rest if stamp))
                for page_id, (text, image, *rest) in json.loads(file.read_text('utf-8')).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f'{file}: {error!r}') from error


def _last_stamps(directory: Path) -> dict[str, ImageStamp]:
    """Returns what images were when the index that is there was written, {} if there is none."""
    try:
        data = json.loads((directory / MANIFEST).read_text('utf-8'))['data']
        keys = _read_keys(directory / data / _KEYS)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {page_id: key.stamp for page_id, key in keys.items() if key.stamp is not None}


def _stamp(file: Path, known: ImageStamp | None) -> ImageStamp:
    """Returns what an image file is, hashed only if it may be another than was known."""
    try:
        found = file.stat()
        if known is not None and known[:2] == (found.st_size, found.st_mtime_ns):
            return known
        return ImageStamp(found.st_size, found.st_mtime_ns,
                          _file_digest(file, found.st_size, found.st_mtime_ns))
    except OSError:
        return ImageStamp(-1, -1, '')  # Nobody has looked at it then.


@functools.lru_cache(maxsize=65_536)  # An index is checked more than once while it is updated.
def _file_digest(file: Path, size: int, mtime_ns: int) -> str:
    with file.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def _key_of(store: PageStore, page: Page, reads: str, stamp: ImageStamp | None) -> str:
    if reads == 'text' and page.text is not None:
        return _digest(page.text)
    file = store.path(page.page_id)
    if stamp is not None:
        return _digest(json.dumps([page.width, page.height, _stamp(file, stamp).sha256]))
    try:
        size = file.stat().st_size
    except OSError:
        size = -1
    return _digest(json.dumps([page.file, page.width, page.height, size]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]
