"""Documents in folders: which files make up a document, under which name, in which order."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vrag_jax.corpus.names import existing, nfc
from vrag_jax.corpus.numbered_names import natural_key
from vrag_jax.perception.image_files import IMAGE_SUFFIXES

OWN_FIELDS = ('metadata.csv', 'metadata.jsonl')  # At the top of a source folder.
PDF_SUFFIX = '.pdf'
_TIFF_SUFFIXES = ('.tif', '.tiff')


@dataclasses.dataclass(frozen=True)
class Document:
    """A document that is to be ingested.

    Attributes:
      name: unique; its path in the source folder, without the file's ending, in the form NFC.
      kind: 'pdf'; 'frames', the pictures of one file; 'images', a file a page.
      files: one, or one a page.
      labels: paths of the files as metadata names them, relative to the source folder, in the
        form NFC.
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


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a document lies in one of the sources.

    Attributes:
      source: its number, from 0.
      label: of the document, as `Document.label`.
      labels: of its files, as `Document.labels`.
    """

    source: int
    label: str
    labels: tuple[str, ...]


@dataclasses.dataclass
class Found:
    """What lies in the sources.

    Attributes:
      documents: ordered by name.
      places: of each document, by its name: of one that lies in several sources all of them.
      problems: (file, reason) of files that cannot be a document, and of folders that cannot
        be listed.
      unlisted: labels of these folders.
      not_read: endings of files that are neither PDFs nor images, and how many have each.
    """

    documents: list[Document] = dataclasses.field(default_factory=list)
    places: dict[str, list[Place]] = dataclasses.field(default_factory=dict)
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    unlisted: list[str] = dataclasses.field(default_factory=list)
    not_read: Counter[str] = dataclasses.field(default_factory=Counter)

    def labels(self, sources: int) -> list[set[str]]:
        """Returns what metadata may name in each of so many sources: files, folders of images."""
        labels: list[set[str]] = [set() for _ in range(sources)]
        for places in self.places.values():
            for place in places:
                labels[place.source].update((place.label, *place.labels))
        return labels

    def shared_labels(self) -> set[str]:
        """Returns labels that several sources have for documents of their own."""
        sources: dict[str, set[int]] = {}
        for first, *_ in self.places.values():
            for label in (first.label, *first.labels):
                sources.setdefault(label, set()).add(first.source)
        return {label for label, numbers in sources.items() if len(numbers) > 1}


def find_documents(sources: Sequence[Path], images: str, exclude: Path) -> Found:
    """Lists the documents of files and folders.

    A document is named by its path in its source. If a document of an earlier source has this
    name, as much of the path of its own source is put before it as tells it from all others:
    sources that are added at the end leave the names of all documents as they are.

    Args:
      sources: PDF and image files, and folders that are searched with their subfolders;
        hidden files and folders are passed over.
      images: what image files are, see `IngestConfig.images`.
      exclude: folder that is passed over, though it be inside of a source.

    Raises:
      FileNotFoundError: if a source does not exist.
      OSError: if a source is a folder that cannot be listed.
      ValueError: if a source is a file that is neither a PDF nor an image.
    """
    found = Found()
    taken: dict[str, Document] = {}
    names: dict[tuple[str, ...], tuple[int, str]] = {}  # Of files, by their real paths.
    others: set[str] = set()
    paths = [existing(Path(source)) for source in sources]
    several = len(set(map(_parts, paths))) > 1
    for number, (source, told) in enumerate(zip(paths, source_names(paths), strict=True)):
        told = f'{told}/' if several else ''
        documents = _of_source(source, images, exclude, found, others, told)
        clashing = []
        for document in documents:
            real = _real(document)
            known_in, known_as = names.get(real, (number, ''))
            if known_in != number:  # Such as a folder and a file of it: it goes in once.
                found.places[known_as].append(_place(number, document))
            elif document.name in taken:
                clashing.append(document)
            else:
                names[real] = number, document.name
                taken[document.name] = document
                found.places[document.name] = [_place(number, document)]
        for document in clashing:
            name = next((n for n in _longer_names(source, document) if n not in taken), None)
            if name is None:
                other = taken[document.name].title
                found.problems.append((told + document.title, f'the document name '
                                       f'{document.name!r} is taken by {other}'))
                continue
            names.setdefault(_real(document), (number, name))
            taken[name] = dataclasses.replace(document, name=name)
            found.places[name] = [_place(number, document)]
    found.documents = [taken[name] for name in sorted(taken)]
    found.problems.sort()
    return found


def source_names(sources: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths of sources that tell them from each other."""
    parts = [_parts(existing(Path(source))) for source in sources]
    ends = Counter(own[-count:] for own in set(parts) for count in range(1, len(own) + 1))
    return ['/'.join(next((own[-count:] for count in range(1, len(own) + 1)
                           if ends[own[-count:]] == 1), own)) for own in parts]


def _of_source(source: Path, images: str, exclude: Path, found: Found, others: set[str],
               told: str) -> list[Document]:
    """Lists the documents of a source, the names of which differ; notes what else is there.

    `others` are the real paths of files that are counted already as not read, `told` is what
    messages put before the names of files.
    """
    if source.is_dir():
        closed: list[tuple[Path, OSError]] = []
        passed: list[Path] = []
        files = list(_walk(source, {exclude.resolve()}, closed, passed))
        top = nfc(source.resolve().name)
        for folder, error in closed:
            if folder == source:
                raise error
            found.unlisted.append(_printable(folder.relative_to(source).as_posix()))
            found.problems.append((told + found.unlisted[-1],
                                   f'cannot be listed: {error.strerror or error}'))
        for file in passed:
            real = os.path.realpath(file)
            if real not in others and not (file.parent == source and file.name in OWN_FIELDS):
                others.add(real)
                found.not_read[_printable(file.suffix.lower())] += 1
    elif not source.exists():
        raise FileNotFoundError(f'source {source}: no such file or folder')
    elif source.suffix.lower() in (PDF_SUFFIX, *IMAGE_SUFFIXES):
        files, top, source = [source], '', source.parent
    else:
        raise ValueError(f'source {source}: neither a PDF nor an image '
                         f'({", ".join(IMAGE_SUFFIXES)})')
    documents: list[Document] = []
    pictures = []
    for file in files:
        path = file.relative_to(source).as_posix()
        label, suffix = nfc(path), file.suffix.lower()
        if path != _printable(path):
            found.problems.append((told + _printable(path), 'its name is not UTF-8'))
        elif suffix == PDF_SUFFIX or suffix in _TIFF_SUFFIXES:
            kind = 'pdf' if suffix == PDF_SUFFIX else 'frames'
            documents.append(Document(_stem(label), kind, (str(file),), (label,)))
        else:
            pictures.append((file, label))
    # An image that is named as a source stands for itself.
    grouped, wrong = _group(pictures, images if top else 'file', top)
    found.problems += [(told + label, reason) for label, reason in wrong]
    by_name: dict[str, Document] = {}
    for document in [*documents, *grouped]:
        other = by_name.setdefault(document.name, document)
        if other is not document and _real(other) != _real(document):
            found.problems.append((told + document.title, f'the document name {document.name!r} '
                                                          f'is taken by {told + other.title}'))
    return list(by_name.values())


def _place(source: int, document: Document) -> Place:
    return Place(source, document.label, document.labels)


def _longer_names(source: Path, document: Document) -> Iterator[str]:
    """Yields a document's name with ever more of its source's path before it."""
    parts = _parts(source)
    # A folder of images that is a source is named by the last of them already.
    own = () if document.kind == 'images' and not document.label and (
        document.name == parts[-1]) and source.is_dir() else (document.name,)
    for count in range(1 if own else 2, len(parts) + 1):
        yield '/'.join([*parts[-count:], *own])


def _parts(source: Path) -> tuple[str, ...]:
    """Names of a source's folder and those that it lies in, the root left out."""
    folder = source.resolve() if source.is_dir() else source.parent.resolve()
    return tuple(map(nfc, folder.parts[1:] or folder.parts))


def _walk(folder: Path, passed: set[Path], closed: list[tuple[Path, OSError]],
          others: list[Path]) -> Iterable[Path]:
    """Yields PDFs and images in the natural order of their paths; no folder twice.

    Folders that cannot be listed are appended to `closed`, with the reason; other files to
    `others`.
    """
    passed.add(folder.resolve())
    try:
        paths = sorted(folder.iterdir(), key=lambda p: (natural_key(nfc(p.name)), p.name))
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
                yield from _walk(path, passed, closed, others)
        elif path.suffix.lower() in (PDF_SUFFIX, *IMAGE_SUFFIXES):
            yield path
        else:
            others.append(path)


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


def _real(document: Document) -> tuple[str, ...]:
    return tuple(os.path.realpath(file) for file in document.files)


def _stem(label: str) -> str:
    return os.path.splitext(label)[0]
