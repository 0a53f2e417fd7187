"""Ingestion: brings the pages of an index up to date with its sources.

What a directory holds at the end depends on sources and settings alone, not on what was
there before, nor on the order in which processes work or how often they were killed:
documents are ordered by name, folders are named by content, and no file holds a time.
"""

import collections
import dataclasses
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vrag_jax.corpus.ingestion import directories, folders, reading
from vrag_jax.corpus.ingestion.directories import Entry
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.ingestion.ingest_report import IngestReport
from vrag_jax.corpus.ingestion.known_pages import KnownPages
from vrag_jax.corpus.ingestion.metadata import Metadata, read_metadata
from vrag_jax.corpus.ingestion.pool import ReadingTask, WorkerPool
from vrag_jax.corpus.ingestion.sources import Document, Found, find_documents, source_names
from vrag_jax.corpus.names import nfc
from vrag_jax.corpus.ocr import missing_extra
from vrag_jax.corpus.pages import Page, PageStore


def ingest(sources: Sequence[Path], directory: Path,
           config: IngestConfig = IngestConfig(),  # noqa: B008 (immutable)
           progress: bool = True, keep_unused: bool = False) -> IngestReport:
    """Makes the pages of a directory those of the sources, reading only what has changed.

    Documents that are new or whose content has changed are read; those that are in no source
    any more are deleted (`IngestConfig.delete_missing`); a file that cannot be read, or a
    folder that cannot be listed, is reported, and what was ingested of it before stays. May be
    killed at any point and called again.

    Args:
      sources: PDF and image files, and folders of them.
      directory: of the pages; is made if needed. Readers of its manifest see the old pages
        until the new ones are complete.
      config: settings.
      progress: whether a bar with pages a second is shown on the standard error.
      keep_unused: whether images that no page refers to any more stay until the next ingestion
        or `remove_unused`. Those of pages that somebody has open stay anyway.

    Returns:
      What was done.

    Raises:
      FileNotFoundError: if a source does not exist, or there is no document in any.
      ValueError: if the directory's pages were rendered with other settings or it holds
        something else, a row of metadata is wrong, too much would be deleted, or no document
        can be read.
      ImportError: if all pages are to be read by OCR and it is not installed.
      RuntimeError: if another ingestion is at work in the directory.
    """
    started = time.monotonic()
    missing = missing_extra() if config.ocr != 'never' else ''
    if missing and config.ocr == 'always':
        raise ImportError(f"ocr='always': {missing}")
    sources, directory = [Path(source) for source in sources], Path(directory)
    found = find_documents(sources, config.images, directory)
    if not found.documents:
        raise FileNotFoundError('; '.join([
            f'sources {[str(s) for s in sources]}: no PDF or image there',
            *(f'{label}: {reason}' for label, reason in found.problems)]))
    labels = found.labels(len(sources))
    metadata = read_metadata(config.metadata, sources, labels)
    directory.mkdir(parents=True, exist_ok=True)
    with directories.locked(directory) as lock:
        directories.check_settings(directory, config)
        directories.remove_partial(directory)
        if missing:
            config = dataclasses.replace(config, ocr='never')
        run = _Run(directory, config, progress, found, source_names(sources), missing)
        run.check_deletions(found.documents)
        with WorkerPool(config, (lock,)) as pool:
            run.inspect(found.documents, pool)
            run.read(pool)
        report = run.write(metadata, labels, started)
        if not keep_unused:
            directories.remove_unused(directory)
    return report


def remove_unused(directory: Path) -> None:
    """Deletes images that no page of the directory's manifest refers to any more.

    What a store refers to that is open, in any process, stays; the next ingestion deletes it.
    """
    with directories.locked(Path(directory)):
        directories.remove_unused(Path(directory))


def delete_documents(directory: Path, names: Sequence[str]) -> None:
    """Deletes documents from a directory that `ingest` has made.

    They come back with the next `ingest` if they are still in its sources.

    Raises:
      KeyError: if there is no document of a name; nothing is deleted then.
      ValueError: if it would leave no page.
      RuntimeError: if an ingestion is at work in the directory.
    """
    directory, names = Path(directory), [nfc(name) for name in names]
    with directories.locked(directory):
        entries = directories.read_entries(directory)
        for name in names:
            if name not in entries:
                raise KeyError(f'no document {name!r} in {directory}')
        kept = [entry for name, entry in sorted(entries.items()) if name not in set(names)]
        store = PageStore.open(directory / directories.MANIFEST, leased=False)
        pages = [page for page in store if nfc(page.document) not in set(names)]
        if not pages:
            raise ValueError(f'{directory}: no page would be left')
        directories.switch(directory, pages, kept)
        directories.remove_unused(directory)


class _Run:
    """An ingestion at work."""

    def __init__(self, directory: Path, config: IngestConfig, progress: bool, found: Found,
                 sources: Sequence[str], missing: str):
        self._directory = directory
        self._folders = directory / directories.FOLDERS
        self._config = config
        self._missing = missing  # What is not installed for the OCR, where it is wanted.
        self._progress = progress
        self._found = found
        self._sources = sources  # What messages call them.
        self._old = directories.read_entries(directory)
        self._old_fields = directories.read_fields(directory)
        self._shared = found.shared_labels()
        self._titles = {d.name: self._told(d.name, d.title) for d in found.documents}
        self._entries: dict[str, Entry] = {}
        self._todo: dict[str, tuple[Document, dict[str, Any]]] = {}
        self._kept: set[str] = set()
        self._pages_read = 0
        self._failures: list[tuple[str, str]] = []

    def check_deletions(self, documents: Sequence[Document]) -> None:
        """Raises a ValueError if more documents would be deleted than may be."""
        gone = self._gone({document.name for document in documents})
        most = self._config.most_deleted * len(self._old)
        if self._config.delete_missing and len(gone) > most:
            raise ValueError(
                f'{self._directory}: {len(gone)} of its {len(self._old)} documents are in no '
                f'source, e.g. {gone[0]!r}. Are these the right sources? To delete them raise '
                'most_deleted, to keep them set delete_missing=False')

    def _gone(self, names: Collection[str]) -> list[str]:
        """Names of the old documents that are not among these, nor where nobody can look."""
        return sorted(name for name, entry in self._old.items() if name not in names
                      and not any(entry.is_in(folder) for folder in self._found.unlisted))

    def inspect(self, documents: Sequence[Document], pool: WorkerPool) -> None:
        """Finds out which documents have to be read."""
        tasks = iter(documents)

        def next_task() -> ReadingTask | None:
            for document in tasks:
                return ReadingTask({'task': 'inspect', 'document': dataclasses.asdict(document)},
                            document)
            return None

        found: dict[str, dict[str, Any]] = {}
        with self._bar(len(documents), 'documents', 'document') as bar:
            for document, reply in pool.run(next_task):
                found[document.name] = reply
                bar.update()
        for document in documents:
            reply = found[document.name]
            if 'error' in reply:
                self._fail(document.name, reply['error'])
                continue
            key = folders.content_key(reply['sha256'], self._config.identity())
            labels = document.labels if document.kind == 'images' else ()
            self._entries[document.name] = Entry(
                document.name, document.label, reply['sha256'], key, labels)
            if self._complete(key, verify=self._config.verify) is None:
                # Of documents of the same content one is read.
                self._todo.setdefault(key, (document, reply))

    def read(self, pool: WorkerPool) -> None:
        """Reads the pages that are not there yet."""
        mode = self._config.ocr
        left: dict[str, int] = {}  # Tasks of a document until all of its pages are read.
        ready: collections.deque[str] = collections.deque()
        failed: dict[str, str] = {}
        for key in self._todo:
            reading.take_over(self._folders, key, mode)
        targets = {key: self._folders / reading.partial_name(key, mode) for key in self._todo}
        self._take_known(targets)
        missing = {key: folders.missing_pages(targets[key], reply['pages'])
                   for key, (_, reply) in self._todo.items()}

        def tasks() -> Iterator[ReadingTask]:
            step = self._config.pages_per_task
            for key, (document, reply) in self._todo.items():
                chunks = [missing[key][i:i + step] for i in range(0, len(missing[key]), step)]
                left[key] = len(chunks)
                if not chunks:
                    ready.append(key)
                for chunk in chunks:
                    if key not in failed:
                        yield ReadingTask({
                            'task': 'read', 'indices': chunk,
                            'document': dataclasses.asdict(document.part(chunk)),
                            'folder': str(targets[key]),
                            'stamps': [reply['stamps'][i] for i in chunk]
                                      if document.kind == 'images' else reply['stamps'],
                            'digests': [reply['digests'][i] for i in chunk]
                                       if document.kind == 'images' else [],
                        }, (key, len(chunk)))

        chunks = tasks()

        def next_task() -> ReadingTask | None:
            task = None if ready else next(chunks, None)
            if task is None and ready:
                key = ready.popleft()
                document, reply = self._todo[key]
                task = ReadingTask({
                    'task': 'finish', 'document': dataclasses.asdict(document),
                    'folder': str(targets[key]), 'pages': reply['pages'],
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
                self._fail(name, failed[entry.folder])

    def _take_known(self, targets: Mapping[str, Path]) -> None:
        """Takes over what is known already of the pages of documents that are images."""
        config = self._config
        known = KnownPages(self._folders, [
            entry.folder for entry in self._old.values() if entry.labels
            # Not those of an earlier way of reading.
            and folders.split_name(entry.folder)[0] == folders.content_key(
                entry.sha256, config.identity())], config.verify)

        def stays(page: folders.PageRecord, folder: str) -> bool:
            return reading.stays(page, folders.split_name(folder)[1], config.ocr)

        for key, (document, reply) in self._todo.items():
            if document.kind == 'images':
                known.take(targets[key], document, reply['digests'], stays)

    def write(self, metadata: Metadata, labels: Sequence[Collection[str]], started: float
              ) -> IngestReport:
        """Switches to the new pages, removes what belongs to none, and reports."""
        deleted = self._gone(self._titles) if self._config.delete_missing else ()
        for name in {*self._old} - {*self._titles} - {*deleted}:
            self._entries[name] = self._old[name]
            self._kept.add(name)
        pages: list[Page] = []
        ocr = 0
        unread: list[tuple[str, str]] = []
        entries = []
        for name, entry in sorted(self._entries.items()):
            folder = self._complete(entry.folder, kept=name in self._kept)
            if folder is None:
                raise ValueError(f'{self._folders}: the folder of {name!r} has vanished')
            entries.append(dataclasses.replace(entry, folder=folder))
            records = folders.read_document(self._folders / folder)
            for record in records:
                label = entry.labels[record.index] if entry.labels else entry.file
                where = self._told(name, label) + (
                    '' if entry.labels else f', page {record.page}')
                if record.error:
                    self._failures.append((where, record.error))
                    continue
                for reason in filter(None, (record.ocr_error, record.font_error)):
                    self._failures.append((where, f'{reason} (the page is kept)'))
                pages.append(Page(
                    f'{name}_{record.page}', name, record.page,
                    f'{directories.FOLDERS}/{folder}/{record.file}', record.width, record.height,
                    record.text or '', self._fields(metadata, entry, record)))
                ocr += record.by_ocr
                if record.unread and not record.asked:
                    unread.append((where, record.unread))
        failures = sorted([*self._found.problems, *self._failures])
        if not pages:
            raise ValueError('no document can be read: '
                             + '; '.join(f'{file}: {reason}' for file, reason in failures[:5]))
        directories.switch(self._directory, pages, entries, failures)
        return _report(self._old, entries, IngestReport(
            failed=tuple(failures), pages=len(pages), pages_read=self._pages_read,
            ocr_pages=ocr, unread=tuple(unread), ocr_missing=self._missing,
            unknown_metadata=tuple(metadata.unknown(labels)),
            ambiguous_metadata=metadata.ambiguous,
            not_read=tuple(sorted(self._found.not_read.items(), key=lambda n: (-n[1], n[0]))),
            seconds=time.monotonic() - started))

    def _fields(self, metadata: Metadata, entry: Entry, record: folders.PageRecord
                ) -> Mapping[str, Any]:
        """Returns the own fields of a page; of a document that is in no source those of before.

        Where a document lies in several sources, those of the first win.
        """
        places = self._found.places.get(entry.document)
        if places is None:
            return self._old_fields.get(f'{entry.document}_{record.page}', {})
        merged: dict[str, Any] = {}
        for place in reversed(places):
            labels = entry.labels if place is places[0] else (
                place.labels if entry.labels == places[0].labels else ())
            merged |= metadata.fields(place.source, place.label,
                                      labels[record.index] if labels else place.label,
                                      record.page)
        return dict(sorted(merged.items()))

    def _told(self, document: str, label: str) -> str:
        """Returns what a message calls a file of a document: with its source, if it needs it."""
        if label not in self._shared or document not in self._found.places:
            return label
        return f'{self._sources[self._found.places[document][0].source]}/{label}'

    def _complete(self, name: str, kept: bool = False, verify: bool = False) -> str | None:
        """Returns the name of the finished folder of a content, None if there is none.

        A folder of which the list or an image is damaged or missing is removed.

        Args:
          name: of a folder of the content, or its key.
          kept: whether it will do as it is, because the file is not there to be read.
          verify: see `folders.whole_document`.
        """
        # Where the OCR is not installed, what it has read elsewhere is as good.
        mode = 'auto' if self._missing else self._config.ocr
        key = folders.split_name(name)[0]
        for folder in ([name] if kept else []) + reading.names(key, mode, kept):
            if (self._folders / folder / folders.DOCUMENT).is_file():
                if kept:
                    return folder
                pages = folders.whole_document(self._folders / folder, verify)
                if pages is None:
                    shutil.rmtree(self._folders / folder)
                    continue
                if self._missing or reading.is_as_asked(
                        pages, folders.split_name(folder)[1], mode):
                    return folder
        return None

    def _fail(self, name: str, reason: str) -> None:
        self._entries.pop(name, None)
        if name in self._old:
            self._entries[name] = self._old[name]
            self._kept.add(name)
            reason += ' (its pages of before are kept)'
        self._failures.append((self._titles[name], reason))

    def _bar(self, total: int, what: str, unit: str) -> tqdm:
        return tqdm(total=total, desc=f'reading {what}', unit=unit, smoothing=0.05,
                    disable=not (self._progress and total), mininterval=0.5, dynamic_ncols=True)


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


