"""Which pages of a document OCR reads, and which pages of an earlier run are kept.

The folder of a document has a suffix by what was read in it: '' nothing, `OCR` what needs it,
`ALL` everything. Where they would hold the same, there is one name: of a document whose text
layers are all believed 'auto' is as 'never', of one without any it is as 'always'.
"""

from collections.abc import Sequence
from pathlib import Path

from vrag_jax.corpus.ingestion import folders
from vrag_jax.corpus.ingestion.folders import ALL, NO_TEXT, OCR, PARTIAL, PageRecord
from vrag_jax.corpus.words import WORDS, read_words

_SUFFIXES = {'never': '', 'auto': OCR, 'always': ALL}


def partial_name(key: str, mode: str) -> str:
    """Returns the name of the folder in which a document is being read."""
    return key + _SUFFIXES[mode] + PARTIAL


def names(key: str, mode: str, any_will_do: bool = False) -> list[str]:
    """Returns names of finished folders that may be what a mode asks for, the best first."""
    order = {'never': [''], 'auto': [OCR, ''], 'always': [ALL, OCR]}[mode]
    return [key + suffix for suffix in [*order, *([OCR, ALL, ''] if any_will_do else [])]]


def is_as_asked(pages: Sequence[PageRecord], suffix: str, mode: str) -> bool:
    """Whether a finished folder is what a mode asks for."""
    read = [page for page in pages if not page.error]
    if mode == 'auto' and suffix == '':
        return not any(page.unread for page in read)
    if mode == 'always' and suffix == OCR:
        return all(page.unread == NO_TEXT for page in read)
    return suffix == _SUFFIXES[mode]


def take_over(directory: Path, key: str, mode: str) -> None:
    """Takes the pages that stay as they are from a document's folder of another mode.

    Args:
      directory: of the folders of documents.
      key: of the document's content.
      mode: in which it will be read, `IngestConfig.ocr`.
    """
    target = directory / partial_name(key, mode)
    for suffix in ('', OCR, ALL):
        source = directory / (key + suffix)
        if not (source / folders.DOCUMENT).is_file():
            continue
        pages = folders.whole_document(source)
        staying = [page for page in pages or () if stays(page, suffix, mode)]
        if not staying:
            continue
        missing = set(folders.missing_pages(target, len(pages or ())))
        words = read_words(source / WORDS)
        for page in staying:
            if page.index in missing:
                folders.take_page(source, page, words.get(page.page, []), target)


def stays(page: PageRecord, suffix: str, mode: str) -> bool:
    """Whether a page of a folder with a suffix is as it would be in a mode."""
    if page.error:
        return False
    if mode == 'never':
        return not page.asked
    if page.asked:  # Without a text layer it is read as a whole in both modes.
        return suffix == _SUFFIXES[mode] or page.unread == NO_TEXT
    return mode == 'auto' and not page.unread
