"""What a page is, to tell whether it has changed, and what has changed between two times."""

import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vrag_jax.corpus.artifact import file_digest
from vrag_jax.corpus.pages import PageStore


class ImageStamp(NamedTuple):
    """What an image file was: it is hashed again only where its size or time differs."""

    size: int  # In bytes.
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, file: Path, known: 'ImageStamp | None' = None) -> 'ImageStamp':
        """Returns what a file is now; nothing of its content where it cannot be read."""
        try:
            found = file.stat()
            if known is not None and known[:2] == (found.st_size, found.st_mtime_ns):
                return known
            return cls(found.st_size, found.st_mtime_ns,
                       _file_digest(file, found.st_size, found.st_mtime_ns))
        except OSError:
            return cls(-1, -1, '')


class PageIdentity(NamedTuple):
    """What a page is to those who read its text, and to those who look at its image.

    Attributes:
      text: digest of its text; that of its image where the text has to be read from it.
      image: digest of its image's size in pixels and content; '' where nobody looks at it.
      stamp: of the image file; None where nobody looks at it.
    """

    text: str
    image: str
    stamp: ImageStamp | None = None


class PageChanges(NamedTuple):
    """Ids of pages that are as they were, that came and that went; in the order of the corpus.

    A page that looks different has gone and come.
    """

    kept: Sequence[str]
    added: Sequence[str]
    removed: frozenset[str]


def identities(store: PageStore, reads: Collection[str], before: Mapping[str, PageIdentity]
               ) -> dict[str, PageIdentity]:
    """Returns what the pages of a store are, by their ids.

    Args:
      store: the pages.
      reads: what is looked at, 'text', 'image' or both: images that nobody looks at, and that
        no text has to be read from, are not opened.
      before: what they were at a time before; files that are as they were are not hashed.
    """
    found = {}
    for page in store:
        image, stamp = '', None
        if 'image' in reads or page.text is None:
            known = before.get(page.page_id)
            stamp = ImageStamp.of(store.path(page.page_id), known and known.stamp)
            image = _digest(json.dumps([page.width, page.height, stamp.sha256]))
        found[page.page_id] = PageIdentity(
            image if page.text is None else _digest(page.text), image, stamp)
    return found


def page_changes(before: Mapping[str, PageIdentity], now: Mapping[str, PageIdentity],
                 reads: Collection[str]) -> PageChanges:
    """Compares pages at two times.

    Args:
      before, now: the pages, by their ids.
      reads: what counts of a page, 'text', 'image' or both.
    """
    kept: list[str] = []
    added: list[str] = []
    for page_id, page in now.items():
        known = before.get(page_id)
        same = known is not None and all(
            getattr(known, name) == getattr(page, name) for name in reads)
        (kept if same else added).append(page_id)
    return PageChanges(kept, added, frozenset(before).difference(kept))


def content_keys(reads: str, store: PageStore, texts: Sequence[str]) -> list[str]:
    """Returns the SHA-256 of each page's text, or of its image file."""
    if reads == 'text':
        return [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    keys = []
    for file in map(store.path, store.ids):
        found = file.stat()
        keys.append(_file_digest(file, found.st_size, found.st_mtime_ns))
    return keys


@functools.lru_cache(maxsize=65_536)  # A page is looked at more than once in an update.
def _file_digest(file: Path, size: int, mtime_ns: int) -> str:
    return file_digest(file)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]
