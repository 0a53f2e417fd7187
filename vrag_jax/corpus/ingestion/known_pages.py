"""Pages of image files that need not be read again, even if they moved to another document.

A folder of images is one document, and with one image more it is another: what was made of the
others before, OCR included, is taken over by the content of the image file.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from vrag_jax.corpus.ingestion import folders
from vrag_jax.corpus.ingestion.folders import PageRecord
from vrag_jax.corpus.ingestion.sources import Document
from vrag_jax.corpus.words import WORDS, Word, read_words


class KnownPages:
    """Pages of finished documents by the SHA-256 of the image files they were made of.

    Args:
      directory: of the folders of documents.
      names: of folders in it, of documents of images that were read as they are now.
      verify: see `folders.whole_document`; folders that are not whole are passed over.
    """

    def __init__(self, directory: Path, names: Sequence[str], verify: bool):
        self._directory = directory
        self._names = names
        self._verify = verify

    def take(self, target: Path, document: Document, digests: Sequence[str],
             stays: Callable[[PageRecord, str], bool]) -> None:
        """Puts the known pages of a document into its folder, see `folders.take_page`.

        Args:
          target: the folder, which ends in `.partial`.
          document: of images.
          digests: SHA-256 of its files.
          stays: whether a page of a folder of a name is as it would be read now.
        """
        for index in folders.missing_pages(target, len(digests)):
            for name, page in self._pages.get(digests[index], ()):
                if stays(page, name):
                    folders.take_page(
                        self._directory / name, page, self._words(name).get(page.page, []), target,
                        page=document.numbers[index], index=index,
                        file=f'{index + 1:04}{Path(page.file).suffix}')
                    break

    @functools.cached_property
    def _pages(self) -> dict[str, list[tuple[str, PageRecord]]]:
        pages: dict[str, list[tuple[str, PageRecord]]] = {}
        for name in sorted(set(self._names)):
            folder = self._directory / name
            if not (folder / folders.DOCUMENT).is_file():
                continue
            for page in folders.whole_document(folder, self._verify) or ():
                if page.source and not page.error:
                    pages.setdefault(page.source, []).append((name, page))
        return pages

    @functools.lru_cache(maxsize=8)  # noqa: B019 (it lives as long as an ingestion)
    def _words(self, name: str) -> dict[int, list[Word]]:
        return read_words(self._directory / name / WORDS)
