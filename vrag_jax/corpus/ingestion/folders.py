"""The folder of an ingested document: named by content, filled page by page, then final.

While it is filled, a folder's name ends in `.partial`, and each page that is done has a
record `0001.json` beside its image. A page whose record is there is not read again: that is
all an ingestion that was killed has to know. At the end the records become one
`document.json` and one file of words, and the folder takes its final name.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrag_jax.corpus.artifact import file_digest, sync
from vrag_jax.corpus.hyphens import join_lines
from vrag_jax.corpus.words import WORDS, Word, write_words

DOCUMENT = 'document.json'
OCR = '-ocr'  # Of a folder in which pages are read by OCR that need it,
ALL = '-all'  # and of one in which all are.
PARTIAL = '.partial'
NO_TEXT = 'has no text layer'  # Why a page is not read: OCR reads all of it.


@dataclasses.dataclass(frozen=True)
class PageRecord:
    """What is known of a page.

    Attributes:
      page: its number, from 1.
      index: its place in the document, from 0.
      file: of its image, in the document's folder; '' if the page could not be read.
      width, height: pixels of the image.
      sha256: of the image file.
      file_bytes: of the image file; 0 if they were not noted, as by earlier versions.
      text: of the page; None if it has no text layer and no OCR was made.
      unread: why the text layer is not believed (`text_layer`, `ink`); '' if it is.
      by_ocr: whether the text was read by OCR, or completed by it.
      font_error: which fonts its image lacks, and what to install; '' if none.
      ocr_error: why the OCR could not read it; '' if it could, or was not asked.
      error: why the page could not be read; '' if it could.
      source: SHA-256 of the image file of which the page was made; '' of other documents.
      broken: the text as it was read, where words were broken at ends of lines that `finish` has
        joined; else ''.
    """

    page: int
    index: int
    file: str = ''
    width: int = 0
    height: int = 0
    sha256: str = ''
    file_bytes: int = 0
    text: str | None = None
    by_ocr: bool = False
    font_error: str = ''
    ocr_error: str = ''
    error: str = ''
    source: str = ''
    unread: str = ''
    broken: str = ''

    @property
    def asked(self) -> bool:
        """Whether it was given to the OCR."""
        return self.by_ocr or bool(self.ocr_error)


def content_key(sha256: str, rendering: Mapping[str, Any]) -> str:
    """Returns the name of the folder of a document: of its content and how it is rendered."""
    told = json.dumps([sha256, dict(rendering)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def write_page(folder: Path, record: PageRecord, words: Sequence[Word]) -> None:
    """Writes the record of a page whose image is complete."""
    content = {**dataclasses.asdict(record), 'words': [[w.text, *w.box] for w in words]}
    _write(folder / _record_name(record.index), json.dumps(content, ensure_ascii=False))


def take_page(source: Path, known: PageRecord, words: Sequence[Word], target: Path,
              **place: Any) -> None:
    """Puts a page of a finished folder into one that is being filled, as if it had been read.

    May be killed at any point, as reading may. The image is the same file in both, where the file
    system has links: images of pages are replaced, never changed in place.

    Args:
      source: the finished folder.
      known: page of it.
      words: of the page.
      target: the folder that is being filled; is made if needed.
      **place: fields of the record that are others there, such as `page`, `index` and `file`.
    """
    target.mkdir(exist_ok=True)
    record = dataclasses.replace(
        known, text=known.broken or known.text, broken='', **place)  # As it was before `finish`.
    image = target / record.file
    partial = image.with_name(f'{image.name}.partial')
    partial.unlink(missing_ok=True)
    try:
        os.link(source / known.file, partial)
    except OSError:
        shutil.copyfile(source / known.file, partial)
    os.replace(partial, image)
    write_page(target, record, words)


def missing_pages(folder: Path, count: int) -> list[int]:
    """Returns the indices, from 0, of a document's pages that have no record yet."""
    if (folder / DOCUMENT).is_file():
        return []
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return [index for index in range(count) if _record_name(index) not in there]


def finish(folder: Path, count: int, renderer: str) -> None:
    """Makes a folder final in which all pages have their records.

    Any number of attempts may have been killed before: what they have left is taken up.

    Args:
      folder: ends in `.partial`.
      count: pages of the document.
      renderer: noted in the document.

    Raises:
      ValueError: if no page of the document could be read; the folder is removed.
    """
    if not (folder / DOCUMENT).is_file():
        records, words = [], []
        for index in range(count):
            content = json.loads((folder / _record_name(index)).read_text('utf-8'))
            found = [Word(text, (x1, y1, x2, y2)) for text, x1, y1, x2, y2 in content.pop('words')]
            records.append(content)
            if found:
                words.append((content['page'], found))
        if not any(content['file'] for content in records):
            shutil.rmtree(folder)
            raise ValueError(f'no page can be read: {records[0]["error"]}')
        # Only now all words of the document are known.
        texts = join_lines([content['text'] or '' for content in records])
        for content, text in zip(records, texts, strict=True):
            if content['text'] is not None and text != content['text']:
                content['broken'], content['text'] = content['text'], text
        if words:
            write_words(folder / WORDS, words)
        _write(folder / DOCUMENT, json.dumps({'renderer': renderer, 'pages': records},
                                             ensure_ascii=False, indent=0))
    pages = read_document(folder)
    wanted = {DOCUMENT, WORDS, *(page.file for page in pages)}
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
        else:
            sync(path)
    sync(folder)
    key, suffix = split_name(folder.name.removesuffix(PARTIAL))
    final = folder.with_name(key + _final_suffix(pages, suffix))
    if final.exists():  # Two documents of one content.
        shutil.rmtree(folder)
    else:
        os.replace(folder, final)
        sync(final.parent)


def _final_suffix(pages: Sequence[PageRecord], suffix: str) -> str:
    """Of the suffixes under which a folder would hold the same, the first of '', OCR and ALL."""
    if suffix == ALL and not all(page.error or page.unread == NO_TEXT for page in pages):
        return ALL
    return OCR if suffix and any(page.asked for page in pages) else ''


def split_name(name: str) -> tuple[str, str]:
    """Returns the key and the suffix of a folder's name."""
    for suffix in (OCR, ALL):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ''


def read_document(folder: Path) -> list[PageRecord]:
    """Returns the pages of a document, in order, with those that could not be read."""
    content = json.loads((folder / DOCUMENT).read_text('utf-8'))
    return [PageRecord(**page) for page in content['pages']]


def whole_document(folder: Path, verify: bool = False) -> list[PageRecord] | None:
    """Returns the pages of a document; None if its list or an image is damaged or missing.

    Args:
      folder: of the document.
      verify: whether images are known by their SHA-256, too, not by their size alone.
    """
    try:
        pages = read_document(folder)
    except (ValueError, KeyError, TypeError):
        return None
    with os.scandir(folder) as files:
        sizes = {file.name: file.stat().st_size for file in files}
    for page in pages:
        if page.file and (
                page.file not in sizes or page.file_bytes not in (0, sizes[page.file])
                or verify and file_digest(folder / page.file) != page.sha256):
            return None
    return pages


def _record_name(index: int) -> str:
    return f'{index + 1:04}.json'


def _write(file: Path, content: str) -> None:
    partial = file.with_name(f'{file.name}.partial')
    partial.write_text(content, 'utf-8')
    os.replace(partial, file)
