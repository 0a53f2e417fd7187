"""Documents in folders: which files make up a document, under which name, in which order."""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vrag_jax.retrieval.numbered_names import natural_key
from vrag_jax.retrieval.pages import IMAGE_SUFFIXES

PDF_SUFFIX = '.pdf'
_TIFF_SUFFIXES = ('.tif', '.tiff')


@dataclasses.dataclass(frozen=True)
class Document:
    """A document that is to be ingested.

    Attributes:
      name: unique; its path in the source folder, without the file's ending.
      kind: 'pdf'; 'frames', the pictures of one file; 'images', a file a page.
      files: one, or one a page.
      labels: paths of the files as metadata names them, relative to the source folder.
      numbers: of the pages, for 'images'; otherwise pages are numbered from 1.
    """

    name: str
    kind: str
    files: tuple[str, ...]
    labels: tuple[str, ...]
    numbers: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """What metadata calls it: its file, or the folder of its images."""
        return self.labels[0] if self.kind != 'images' else os.path.dirname(self.labels[0])

    @property
    def title(self) -> str:
        """What a message calls it: its file; its name, if it is made of files by their names."""
        of_file = self.kind != 'images' or _stem(self.labels[0]) == self.name
        return self.labels[0] if of_file else self.name

    def part(self, indices: Sequence[int]) -> 'Document':
        """Returns a document of some of its pages' files: a file alone has them all."""
        if self.kind != 'images':
            return self
        return dataclasses.replace(
            self, files=tuple(self.files[index] for index in indices),
            labels=tuple(self.labels[index] for index in indices),
            numbers=tuple(self.numbers[index] for index in indices))


def find_documents(sources: Sequence[Path], images: str, exclude: Path
                   ) -> tuple[list[Document], list[tuple[str, str]], list[str]]:
    """Lists the documents of files and folders, ordered by name.

    Args:
      sources: PDF and image files, and folders that are searched with their subfolders;
        hidden files and folders are passed over.
      images: what image files are, see `IngestConfig.images`.
      exclude: folder that is passed over, though it be inside of a source.

    Returns:
      The documents; (file, reason) of files that cannot be one, and of folders that cannot be
      listed; labels of these folders.

    Raises:
      FileNotFoundError: if a source does not exist.
      OSError: if a source is a folder that cannot be listed.
      ValueError: if a source is a file that is neither a PDF nor an image.
    """
    found: list[Document] = []
    problems: list[tuple[str, str]] = []
    unlisted: list[str] = []
    for source in map(Path, sources):
        if source.is_dir():
            closed: list[tuple[Path, OSError]] = []
            files = list(_walk(source, {exclude.resolve()}, closed))
            top = source.resolve().name
            for folder, error in closed:
                if folder == source:
                    raise error
                unlisted.append(_printable(folder.relative_to(source).as_posix()))
                problems.append((unlisted[-1], f'cannot be listed: {error.strerror or error}'))
        elif not source.exists():
            raise FileNotFoundError(f'source {source}: no such file or folder')
        elif source.suffix.lower() in (PDF_SUFFIX, *IMAGE_SUFFIXES):
            files, top, source = [source], '', source.parent
        else:
            raise ValueError(f'source {source}: neither a PDF nor an image '
                             f'({", ".join(IMAGE_SUFFIXES)})')
        labels = {}
        for file in files:
            label = file.relative_to(source).as_posix()
            if label == _printable(label):
                labels[file] = label
            else:
                problems.append((_printable(label), 'its name is not UTF-8'))
        pictures = []
        for file, label in labels.items():
            suffix = file.suffix.lower()
            if suffix == PDF_SUFFIX or suffix in _TIFF_SUFFIXES:
                kind = 'pdf' if suffix == PDF_SUFFIX else 'frames'
                found.append(Document(_stem(label), kind, (str(file),), (label,)))
            else:
                pictures.append((file, label))
        # An image that is named as a source stands for itself.
        grouped, wrong = _group(pictures, images if top else 'file', top)
        found += grouped
        problems += wrong
    by_name: dict[str, Document] = {}
    for document in found:
        other = by_name.setdefault(document.name, document)
        # What lies in two sources, such as a folder and a file of it, goes in once.
        if other is not document and _real(other) != _real(document):
            problems.append((document.title, f'the document name {document.name!r} is taken by '
                                             f'{other.title}'))
    return [by_name[name] for name in sorted(by_name)], sorted(problems), unlisted


def _walk(folder: Path, passed: set[Path], closed: list[tuple[Path, OSError]]) -> Iterable[Path]:
    """Yields PDFs and images in the natural order of their paths; no folder twice.

    Folders that cannot be listed are appended to `closed`, with the reason.
    """
    passed.add(folder.resolve())
    try:
        paths = sorted(folder.iterdir(), key=lambda p: natural_key(p.name))
    except OSError as error:
        closed.append((folder, error))
        return
    for path in paths:
        if path.name.startswith('.'):
            continue
        try:
            is_folder = path.is_dir()
        except OSError as error:  # What it is cannot be asked where one may list, but not enter.
            closed.append((path, error))
            continue
        if is_folder:
            if path.resolve() not in passed:  # A link may lead back to where it is.
                yield from _walk(path, passed, closed)
        elif path.suffix.lower() in (PDF_SUFFIX, *IMAGE_SUFFIXES):
            yield path


def _group(pictures: Sequence[tuple[Path, str]], images: str, top: str
           ) -> tuple[list[Document], list[tuple[str, str]]]:
    """Makes documents of images; returns them and what cannot be one."""
    members: dict[str, dict[int, tuple[Path, str]]] = {}
    problems = []
    for file, label in pictures:
        stem = _stem(label)
        numbered = re.fullmatch(r'(.*[^/])_(\d+)', stem)
        if images == 'folder':
            name = os.path.dirname(label) or top
            number = len(members.get(name, ())) + 1
        elif images == 'numbered' and numbered and int(numbered[2]) >= 1:
            name, number = numbered[1], int(numbered[2])
        else:
            name, number = stem, 1
        taken = members.setdefault(name, {}).setdefault(number, (file, label))
        if taken[0] != file:
            problems.append((label, f'page {number} of {name!r} is taken by {taken[1]}'))
    documents = []
    for name, pages in members.items():
        numbers = tuple(sorted(pages))
        documents.append(Document(
            name, 'images', tuple(str(pages[n][0]) for n in numbers),
            tuple(pages[n][1] for n in numbers), numbers))
    return documents, problems


def _printable(label: str) -> str:
    """Returns a label with '?' for what is not UTF-8."""
    return label.encode('utf-8', 'replace').decode()


def _real(document: Document) -> list[str]:
    return [os.path.realpath(file) for file in document.files]


def _stem(label: str) -> str:
    return os.path.splitext(label)[0]
