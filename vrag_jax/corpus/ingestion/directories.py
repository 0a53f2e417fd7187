"""The folder of an index's pages on disk: its lists, its settings, its lock.

    DIRECTORY/pages.jsonl        manifest of the pages (`PageStore.open`)
    DIRECTORY/documents.jsonl    a line a document: name, file, content, folder
    DIRECTORY/failures.jsonl     files and pages that could not be read, and why
    DIRECTORY/ingestion.json     how pages are rendered
    DIRECTORY/documents/KEY/     images, texts and words of a document (`folders`)

Lists are replaced atomically; the folder of a document is named by its content and never
changes, so those who read the old lists find what they refer to. It is deleted when no list
names it and nobody who has opened the old manifest is left (`retrieval.leases`).
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrag_jax.corpus.artifact import sync
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.leases import retain, still_read
from vrag_jax.corpus.names import nfc
from vrag_jax.corpus.pages import INGESTED, Page, PageStore

MANIFEST = 'pages.jsonl'
FOLDERS = 'documents'
_DOCUMENTS = 'documents.jsonl'
_FAILURES = 'failures.jsonl'
_SETTINGS = INGESTED
_LOCK = 'lock'
_FORMAT_VERSION = 1
_LOCK_WAIT_S = 30.0  # Workers of a process that was killed end at once.


@dataclasses.dataclass(frozen=True)
class Entry:
    """A document of the index: one line of its list.

    Attributes:
      document: its name.
      file: where it was, relative to its source.
      sha256: of its content.
      folder: of its images, in the folder of documents.
      labels: files of its pages, for a document of several files.
    """

    document: str
    file: str
    sha256: str
    folder: str
    labels: tuple[str, ...] = ()

    def is_in(self, folder: str) -> bool:
        """Whether its file, or the folder of its images, is in a folder of its source."""
        return f'{self.file}/'.startswith(f'{folder}/')


def switch(directory: Path, pages: Sequence[Page], entries: Sequence[Entry],
            failures: Sequence[tuple[str, str]] | None = None) -> None:
    """Makes pages and documents those of the directory; None leaves its failures as they are."""
    retain(directory / MANIFEST)
    PageStore.write(directory / MANIFEST, pages)
    _write_lines(directory / _DOCUMENTS, [dataclasses.asdict(entry) for entry in entries])
    if failures is not None:
        _write_lines(directory / _FAILURES,
                     [{'file': file, 'reason': reason} for file, reason in failures])
    sync(directory)


def remove_unused(directory: Path) -> None:
    """Deletes folders of documents that are on no list any more; the lock must be held.

    Those of a manifest that was replaced stay as long as somebody reads it, see `leases`; what
    is left so is deleted by the next ingestion.
    """
    used = {entry.folder for entry in read_entries(directory).values()}
    # An ingestion that was killed may have replaced one list and not the other.
    if (directory / MANIFEST).is_file():
        manifests = [(directory / MANIFEST).read_text('utf-8'), *still_read(directory / MANIFEST)]
        used |= {Path(json.loads(line)['file']).parent.name
                 for text in manifests for line in text.split('\n') if line}
    for folder in (directory / FOLDERS).iterdir():
        if folder.name not in used:
            shutil.rmtree(folder)


def remove_partial(directory: Path) -> None:
    """Deletes lists that were being written when an ingestion was killed; the lock is held."""
    for file in directory.glob('*.partial'):
        file.unlink()


def read_entries(directory: Path) -> dict[str, Entry]:
    """Returns the documents of a directory by name, {} if nothing was ingested yet."""
    file = directory / _DOCUMENTS
    if not file.is_file():
        return {}
    try:
        entries = [json.loads(line) for line in file.read_text('utf-8').split('\n') if line]
        # Those of before the names of documents were in one form of Unicode, too.
        found = [Entry(**{**e, 'document': nfc(e['document']), 'file': nfc(e['file']),
                          'labels': tuple(map(nfc, e['labels']))}) for e in entries]
        return {entry.document: entry for entry in found}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file}: damaged ({error!r}); delete it, and all documents are taken '
                         'up again from their folders') from error


def read_fields(directory: Path) -> dict[str, Mapping[str, Any]]:
    """Returns the own fields of the directory's pages, by their ids; {} if there are none."""
    file = directory / MANIFEST
    if not file.is_file():
        return {}
    pages = [json.loads(line) for line in file.read_text('utf-8').split('\n') if line]
    return {nfc(page['page_id']): page['metadata'] for page in pages if 'metadata' in page}


def check_settings(directory: Path, config: IngestConfig) -> None:
    """Notes how pages are rendered, or refuses other settings than those noted.

    Raises:
      ValueError: saying what differs; or if the directory's manifest is not of an ingestion.
    """
    file = directory / _SETTINGS
    wanted = {'version': _FORMAT_VERSION, **config.rendering()}
    if not file.is_file():
        if (directory / MANIFEST).exists():
            raise ValueError(f'{directory}: holds a {MANIFEST} that is not of an ingestion; '
                             'choose another directory')
        _write_lines(file, [wanted])
        return
    try:
        found = dict(json.loads(file.read_text('utf-8')))
    except (ValueError, TypeError) as error:
        raise ValueError(f'{file}: damaged: {error!r}') from error
    # Of earlier versions; what is to be read is judged otherwise.
    old = found.pop('ocr_below', None) is not None
    different = [f'{name} {found.get(name)!r}, not {wanted.get(name)!r}'
                 for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if different:
        raise ValueError(f'{directory}: its pages are made with {"; ".join(different)}: take the '
                         'settings it was made with, or another directory')
    if old:
        _write_lines(file, [wanted])


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    partial = file.with_name(f'{file.name}.partial')
    partial.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 'utf-8')
    sync(partial)
    os.replace(partial, file)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Holds the lock of a directory; yields its file, with which workers hold it too.

    Raises:
      RuntimeError: if another process keeps it for half a minute.
    """
    with open(directory / _LOCK, 'w') as file:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f'{directory}: another ingestion is at work there'
                                       ) from None
                time.sleep(0.1)
        yield file.fileno()
