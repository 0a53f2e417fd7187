"""Ingestion: the pages of a folder of an index become those of its sources.

    DIRECTORY/pages.jsonl        manifest of the pages (`PageStore.open`)
    DIRECTORY/documents.jsonl    a line a document: name, file, content, folder
    DIRECTORY/failures.jsonl     files and pages that could not be read, and why
    DIRECTORY/ingestion.json     how pages are rendered
    DIRECTORY/documents/KEY/     images, texts and words of a document (`folders`)

What is there at the end depends on sources and settings alone, not on what was there
before, nor on the order in which processes work or how often they were killed: documents
are ordered by name, folders are named by content, and no file holds a time.
"""

import collections
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

from tqdm import tqdm

from vrag_jax.ingestion import folders
from vrag_jax.ingestion.metadata import Metadata, read_metadata
from vrag_jax.ingestion.pool import Task, WorkerPool
from vrag_jax.ingestion.report import IngestReport
from vrag_jax.ingestion.settings import IngestConfig
from vrag_jax.ingestion.sources import Document, find_documents
from vrag_jax.retrieval.pages import Page, PageStore

MANIFEST = 'pages.jsonl'
_DOCUMENTS = 'documents.jsonl'
_FAILURES = 'failures.jsonl'
_SETTINGS = 'ingestion.json'
_LOCK = 'lock'
_FOLDERS = 'documents'
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


def ingest(sources: Sequence[Path], directory: Path, config: IngestConfig = IngestConfig(),  # noqa: B008 (immutable)
           progress: bool = True) -> IngestReport:
    """Makes the pages of a directory those of the sources, reading only what has changed.

    Documents that are new or whose content has changed are read; those that are in no source
    any more are deleted (`IngestConfig.delete_missing`); a file that cannot be read is
    reported, and if an earlier version of it was ingested, that one stays. May be killed at
    any point and called again.

    Args:
      sources: PDF and image files, and folders of them.
      directory: of the pages; is made if needed. Readers of its manifest see the old pages
        until the new ones are complete.
      config: settings.
      progress: whether a bar with pages a second is shown on the standard error.

    Returns:
      What was done.

    Raises:
      FileNotFoundError: if a source does not exist, or there is no document in any.
      ValueError: if the directory's pages were rendered with other settings, a row of
        metadata is wrong, or the directory holds something else.
      ImportError: if OCR is needed and not installed.
      RuntimeError: if another ingestion is at work in the directory.
    """
    started = time.monotonic()
    sources, directory = [Path(source) for source in sources], Path(directory)
    documents, problems = find_documents(sources, config.images, directory)
    if not documents:
        raise FileNotFoundError(f'sources {[str(s) for s in sources]}: no PDF or image there')
    metadata = read_metadata(config.metadata, sources)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory) as lock:
        _check_settings(directory, config)
        run = _Run(directory, config, progress)
        with WorkerPool(config, (lock,)) as pool:
            run.inspect(documents, pool)
            run.read(pool)
        return run.write(metadata, problems, started)


def delete_documents(directory: Path, names: Sequence[str]) -> None:
    """Deletes documents from a directory that `ingest` has made.

    They come back with the next `ingest` if they are still in its sources.

    Raises:
      KeyError: if there is no document of a name; nothing is deleted then.
      ValueError: if it would leave no page.
      RuntimeError: if an ingestion is at work in the directory.
    """
    directory = Path(directory)
    with _locked(directory):
        entries = _read_entries(directory)
        for name in names:
            if name not in entries:
                raise KeyError(f'no document {name!r} in {directory}')
        kept = [entry for name, entry in sorted(entries.items()) if name not in set(names)]
        store = PageStore.open(directory / MANIFEST)
        pages = [page for page in store if page.document not in set(names)]
        if not pages:
            raise ValueError(f'{directory}: no page would be left')
        _switch(directory, pages, kept)


class _Run:
    """An ingestion at work."""

    def __init__(self, directory: Path, config: IngestConfig, progress: bool):
        self._directory = directory
        self._folders = directory / _FOLDERS
        self._config = config
        self._progress = progress
        self._old = _read_entries(directory)
        self._entries: dict[str, Entry] = {}
        self._todo: dict[str, tuple[Document, dict[str, Any]]] = {}
        self._kept: set[str] = set()
        self._labels: set[str] = set()
        self._names: set[str] = set()
        self._pages_read = 0
        self._failures: list[tuple[str, str]] = []

    def inspect(self, documents: Sequence[Document], pool: WorkerPool) -> None:
        """Finds out which documents have to be read."""
        self._names = {document.name for document in documents}
        self._labels = {x for d in documents for x in (d.label, *d.labels)}
        tasks = iter(documents)

        def next_task() -> Task | None:
            document = next(tasks, None)
            return document and Task(
                {'task': 'inspect', 'document': dataclasses.asdict(document)}, document)

        found: dict[str, dict[str, Any]] = {}
        with self._bar(len(documents), 'documents', 'document') as bar:
            for document, reply in pool.run(next_task):
                found[document.name] = reply
                bar.update()
        for document in documents:
            reply = found[document.name]
            if 'error' in reply:
                self._fail(document.name, document.label, reply['error'])
                continue
            key = folders.content_key(reply['sha256'], self._config.rendering())
            labels = document.labels if document.kind == 'images' else ()
            self._entries[document.name] = Entry(
                document.name, document.label, reply['sha256'], key, labels)
            if self._complete(key) is None:
                # Of documents of the same content one is read.
                self._todo.setdefault(key, (document, reply))

    def read(self, pool: WorkerPool) -> None:
        """Reads the pages that are not there yet."""
        partial = folders.OCR * self._config.ocr + folders.PARTIAL
        left: dict[str, int] = {}  # Tasks of a document until all of its pages are read.
        ready: collections.deque[str] = collections.deque()
        failed: dict[str, str] = {}
        missing = {key: folders.missing_pages(self._folders / (key + partial), reply['pages'])
                   for key, (_, reply) in self._todo.items()}

        def reading() -> Iterator[Task]:
            step = self._config.pages_per_task
            for key, (document, _) in self._todo.items():
                chunks = [missing[key][i:i + step] for i in range(0, len(missing[key]), step)]
                left[key] = len(chunks)
                if not chunks:
                    ready.append(key)
                for chunk in chunks:
                    if key not in failed:
                        yield Task({
                            'task': 'read', 'document': dataclasses.asdict(document),
                            'folder': str(self._folders / (key + partial)), 'indices': chunk,
                        }, (key, len(chunk)))

        chunks = reading()

        def next_task() -> Task | None:
            task = None if ready else next(chunks, None)
            if task is None and ready:
                key = ready.popleft()
                document, reply = self._todo[key]
                task = Task({
                    'task': 'finish', 'document': dataclasses.asdict(document),
                    'folder': str(self._folders / (key + partial)), 'pages': reply['pages'],
                    'stamps': reply['stamps']}, (key, 0))
            return task

        with self._bar(sum(map(len, missing.values())), 'pages', 'page') as bar:
            for (key, count), reply in pool.run(next_task):
                if 'error' in reply:
                    failed.setdefault(key, reply['error'])
                elif count:
                    left[key] -= 1
                    if not left[key] and key not in failed:
                        ready.append(key)
                    self._pages_read += count
                    bar.update(count)
        for name, entry in list(self._entries.items()):
            if entry.folder in failed:
                self._fail(name, entry.file, failed[entry.folder])

    def write(self, metadata: Metadata, problems: Sequence[tuple[str, str]], started: float
              ) -> IngestReport:
        """Switches to the new pages, removes what belongs to none, and reports."""
        if not self._config.delete_missing:
            for name in sorted(set(self._old) - self._names):
                self._entries[name] = self._old[name]
                self._kept.add(name)
        pages: list[Page] = []
        ocr = unread = 0
        entries = []
        for name, entry in sorted(self._entries.items()):
            folder = self._complete(entry.folder.removesuffix(folders.OCR), kept=name in self._kept)
            if folder is None:
                raise ValueError(f'{self._folders}: the folder of {name!r} has vanished')
            entries.append(dataclasses.replace(entry, folder=folder))
            records = folders.read_document(self._folders / folder)
            for record in records:
                if record.error:
                    self._failures.append((f'{entry.file}, page {record.page}', record.error))
                    continue
                label = entry.labels[record.index] if entry.labels else entry.file
                pages.append(Page(
                    f'{name}_{record.page}', name, record.page,
                    f'{_FOLDERS}/{folder}/{record.file}', record.width, record.height,
                    record.text, metadata.fields(entry.file, label, record.page)))
                ocr += record.by_ocr
                unread += _is_unread(record, self._config)
        failures = sorted([*problems, *self._failures])
        if not pages:
            raise ValueError('no document can be read: '
                             + '; '.join(f'{file}: {reason}' for file, reason in failures[:5]))
        _switch(self._directory, pages, entries, failures)
        return _report(self._old, entries, IngestReport(
            failed=tuple(failures), pages=len(pages), pages_read=self._pages_read,
            ocr_pages=ocr, pages_without_text=unread,
            unknown_metadata=tuple(metadata.unknown(self._labels)),
            seconds=time.monotonic() - started))

    def _complete(self, key: str, kept: bool = False) -> str | None:
        """Returns the name of the finished folder of a content, None if there is none.

        Args:
          key: of the content.
          kept: whether one without OCR will do, because the file is not there to be read.
        """
        for name in (key + folders.OCR, key):
            if (self._folders / name / folders.DOCUMENT).is_file():
                pages = folders.read_document(self._folders / name)
                if kept or not self._config.ocr or name != key or not any(
                        _is_unread(page, self._config) for page in pages):
                    return name
        return None

    def _fail(self, name: str, file: str, reason: str) -> None:
        self._entries.pop(name, None)
        if name in self._old:
            self._entries[name] = self._old[name]
            self._kept.add(name)
            reason += ' (its pages of before are kept)'
        self._failures.append((file, reason))

    def _bar(self, total: int, what: str, unit: str) -> tqdm:
        return tqdm(total=total, desc=f'reading {what}', unit=unit, smoothing=0.05,
                    disable=not (self._progress and total), mininterval=0.5, dynamic_ncols=True)


def _is_unread(record: folders.PageRecord, config: IngestConfig) -> bool:
    return (not record.error and not record.by_ocr
            and len(record.text or '') < config.ocr_below)


def _report(old: Mapping[str, Entry], entries: Sequence[Entry], report: IngestReport
            ) -> IngestReport:
    """Fills in which documents are new, replaced, unchanged and deleted."""
    new = {entry.document: entry for entry in entries}
    same = {name for name in new if name in old and old[name].folder == new[name].folder}
    contents: dict[str, list[str]] = {}
    for entry in entries:
        contents.setdefault(entry.sha256, []).append(entry.document)
    return dataclasses.replace(
        report, added=tuple(name for name in new if name not in old),
        replaced=tuple(name for name in new if name in old and name not in same),
        unchanged=tuple(name for name in new if name in same),
        deleted=tuple(name for name in old if name not in new),
        same_content=tuple(tuple(names) for names in contents.values() if len(names) > 1))


def _switch(directory: Path, pages: Sequence[Page], entries: Sequence[Entry],
            failures: Sequence[tuple[str, str]] | None = None) -> None:
    """Makes pages and documents those of the directory, and removes what is of no use."""
    PageStore.write(directory / MANIFEST, pages)
    _write_lines(directory / _DOCUMENTS, [dataclasses.asdict(entry) for entry in entries])
    if failures is not None:
        _write_lines(directory / _FAILURES,
                     [{'file': file, 'reason': reason} for file, reason in failures])
    folders.sync(directory)
    used = {entry.folder for entry in entries}
    for folder in (directory / _FOLDERS).iterdir():
        if folder.name not in used:
            shutil.rmtree(folder)


def _read_entries(directory: Path) -> dict[str, Entry]:
    file = directory / _DOCUMENTS
    if not file.is_file():
        return {}
    entries = [json.loads(line) for line in file.read_text('utf-8').split('\n') if line]
    return {e['document']: Entry(**{**e, 'labels': tuple(e['labels'])}) for e in entries}


def _check_settings(directory: Path, config: IngestConfig) -> None:
    """Notes how pages are rendered, or refuses other settings than those noted."""
    file = directory / _SETTINGS
    wanted = {'version': _FORMAT_VERSION, **config.rendering()}
    if not file.is_file():
        if (directory / MANIFEST).exists():
            raise ValueError(f'{directory}: holds a {MANIFEST} that is not of an ingestion; '
                             'choose another directory')
        _write_lines(file, [wanted])
        return
    found = json.loads(file.read_text('utf-8'))
    different = [f'{name} {found.get(name)!r}, not {wanted.get(name)!r}'
                 for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if different:
        raise ValueError(f'{directory}: its pages are made with {"; ".join(different)}: take the '
                         'settings it was made with, or another directory')


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    partial = file.with_name(f'{file.name}.partial')
    partial.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 'utf-8')
    folders.sync(partial)
    os.replace(partial, file)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Holds the lock of a directory; yields its file, with which workers hold it too."""
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
