"""The process that reads documents: tasks as JSON lines in, replies as JSON lines out.

Not a child of `multiprocessing`: that would import the main module of the parent, and with
it JAX, in every process; and a process that a broken PDF brings down would take the whole
pool with it.
"""

import dataclasses
import hashlib
import json
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrag_jax.corpus.artifact import file_digest
from vrag_jax.corpus.ingestion import folders, text_layer
from vrag_jax.corpus.ingestion import page_files as images
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.ingestion.sources import Document
from vrag_jax.corpus.ink import shows_more
from vrag_jax.corpus.ocr import OcrError, OcrReader
from vrag_jax.corpus.ocr_lines import OcrLine, beside
from vrag_jax.corpus.pdf.document import Pdf, version
from vrag_jax.corpus.words import Word, covered

# They are not of a page: it is not noted as one that cannot be read, but tried another time.
_OF_THE_RUN = (ImportError, OSError, MemoryError)


class Worker:
    """Does tasks; keeps the PDF of the last one open for the next.

    Args:
      config: of the ingestion.
    """

    def __init__(self, config: IngestConfig):
        self._config = config
        self._ocr = OcrReader(None)
        self._pdf: tuple[str, Pdf] | None = None

    def inspect(self, document: Document) -> dict[str, Any]:
        """Returns the digest of a document's content, its number of pages, its files' stamps."""
        stamps = _stamps(document)
        if document.kind == 'images':
            parts = [[number, _digest(Path(name))]
                     for number, name in zip(document.numbers, document.files, strict=True)]
            digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            return {'sha256': digest, 'pages': len(parts), 'stamps': stamps,
                    'digests': [part[1] for part in parts]}
        [file] = map(Path, document.files)
        pages = len(self._open(str(file))) if document.kind == 'pdf' else images.count_frames(file)
        return {'sha256': file_digest(file), 'pages': pages, 'stamps': stamps}

    def read(self, document: Document, folder: str, indices: list[int],
             stamps: list[list[int]], digests: Sequence[str] = ()) -> dict[str, Any]:
        """Reads pages into a folder named by what `inspect` has seen.

        Args:
          document: of images only those of these pages (`Document.part`).
          folder: where to.
          indices: of the pages in the whole document, from 0.
          stamps: of the document's files when they were inspected.
          digests: of images, the SHA-256 of each file.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for place, index in enumerate(indices):
            file = place if document.kind == 'images' else 0
            number = document.numbers[place] if document.numbers else index + 1
            words: list[Word] = []
            try:
                record, words = self._page(document, file, index, number, target)
            except _OF_THE_RUN:
                raise
            except Exception as error:
                record = folders.PageRecord(number, index, error=_reason(error))
            if digests:
                record = dataclasses.replace(record, source=digests[place])
            _check_stamps([_stamp(document.files[file])], [stamps[file]], target)
            folders.write_page(target, record, words)
        return {}

    def finish(self, document: Document, folder: str, pages: int, stamps: list[list[int]]
               ) -> dict[str, Any]:
        """Makes a folder final whose pages have all been read."""
        _check_stamps(_stamps(document), stamps, Path(folder))
        renderer = version() if document.kind == 'pdf' else 'pillow'
        folders.finish(Path(folder), pages, renderer)
        return {}

    def _page(self, document: Document, place: int, index: int, number: int, folder: Path
              ) -> tuple[folders.PageRecord, list[Word]]:
        config, target = self._config, folder / f'{index + 1:04}'
        text, font_error, unread = '', '', folders.NO_TEXT
        words: list[Word] = []
        if document.kind == 'pdf':
            pdf = self._open(document.files[0])
            page = pdf.read(index + 1, config.dpi, config.max_pixels)
            image, text, words, font_error = page.image, page.text, page.words, page.font_error
            size = image.size
            unread, _ = text_layer.judge(text, pdf.glyphs(index + 1))
            if not unread and shows_more(image, text, covered(words)):
                unread = text_layer.INCOMPLETE
            file = images.encode_image(image, target, config.image_format, config.quality)
        else:
            frame = index if document.kind == 'frames' else 0
            file, size = images.store_image(
                Path(document.files[place]), frame, target, config.image_format, config.quality,
                config.max_pixels)
        by_ocr, ocr_error = False, ''
        if config.ocr == 'always' or unread and config.ocr == 'auto':
            try:
                lines = self._ocr.read_lines(file)
            except OcrError as error:
                ocr_error = str(error)
            else:
                by_ocr = True
                if config.ocr == 'auto' and unread in text_layer.TO_COMPLETE:
                    lines = beside(lines, covered(words))
                    text = '\n'.join([text] * bool(text) + [line.text for line in lines])
                    words = words + _words_of(lines)
                elif lines:
                    text, words = '\n'.join(line.text for line in lines), _words_of(lines)
        return folders.PageRecord(
            number, index, file.name, *size, file_digest(file), file.stat().st_size,
            text if by_ocr or text else None, by_ocr, font_error, ocr_error, unread=unread), words

    def _open(self, file: str) -> Pdf:
        if self._pdf is None or self._pdf[0] != file:
            self.close()
            self._pdf = file, Pdf(Path(file))
        return self._pdf[1]

    def close(self) -> None:
        """Closes the file that is open."""
        if self._pdf is not None:
            self._pdf[1].__exit__()
            self._pdf = None


def _words_of(lines: list[OcrLine]) -> list[Word]:
    return [Word(*word) for line in lines for word in line.words]


def _stamps(document: Document) -> list[list[int]]:
    return [_stamp(file) for file in document.files]


def _stamp(file: str) -> list[int]:
    """What changes with a file's content; of a file that is not there, too."""
    try:
        stat = os.stat(file)
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def _check_stamps(found: list[list[int]], expected: list[list[int]], folder: Path) -> None:
    """Raises a ValueError, and removes what was read of a document, if that has changed.

    Its folder is named by the content of before; what is in it may be of the new one.
    """
    if found != expected:
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError('has been changed while it was read')


def _digest(file: Path) -> str:
    """Of an image; one that cannot be opened is a page that cannot be read."""
    try:
        return file_digest(file)
    except OSError as error:
        return f'cannot be opened: {error.strerror}'


def answer(tasks: Mapping[str, Callable[..., dict[str, Any]]], line: str) -> dict[str, Any]:
    """Does the task of a line; returns the reply: its result, or 'error' with the reason."""
    fields = json.loads(line)
    document = fields.pop('document')
    for name in ('files', 'labels', 'numbers'):
        document[name] = tuple(document[name])
    try:
        return tasks[fields.pop('task')](Document(**document), **fields)
    except ImportError as error:
        return {'fatal': str(error)}
    except Exception as error:  # The other documents go in.
        return {'error': _reason(error)}


def _reason(error: Exception) -> str:
    """What is said of a file or page; an error of another kind is a library's, and is named."""
    if isinstance(error, (ValueError, OSError, MemoryError)) and str(error):
        return str(error)
    return f'{type(error).__name__}: {error}'.removesuffix(': ')


def _watch(lines: 'queue.SimpleQueue[str]') -> None:
    for line in sys.stdin:
        lines.put(line)
    # The parent is gone, or wants no more: half a page is of no use to anybody.
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, who ends this.
    # Libraries print to the standard output.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), 'w', buffering=1, encoding='utf-8')
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    config = IngestConfig(**json.loads(sys.stdin.readline()))
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_watch, args=(lines,), daemon=True).start()
    images.allow_large_images()
    worker = Worker(config)
    tasks: dict[str, Callable[..., dict[str, Any]]] = {
        'inspect': worker.inspect, 'read': worker.read, 'finish': worker.finish}
    while True:
        print(json.dumps(answer(tasks, lines.get())), file=replies)


if __name__ == '__main__':
    main()
