"""Pages of a corpus: a manifest of explicit page ids over image files."""

import dataclasses
import hashlib
import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vrag_jax.corpus.artifact import sync
from vrag_jax.corpus.leases import Lease, read_leased
from vrag_jax.corpus.names import existing, nfc
from vrag_jax.corpus.numbered_names import natural_key, numbered_names
from vrag_jax.perception.image_files import IMAGE_SUFFIXES, load_image, upright_size

INGESTED = 'ingestion.json'  # Beside a manifest whose images are deleted when pages change.
_BYTES_PER_PIXEL = 3


@dataclasses.dataclass(frozen=True)
class Page:
    """One page of the corpus.

    Attributes:
      page_id: unique name of the page.
      document: name of the document it belongs to.
      page: number of the page in its document, from 1.
      file: image file, relative to the manifest's folder.
      width: pixels of the upright image.
      height: pixels of the upright image.
      text: the page's text if it is known; None if it has to be read.
      metadata: own fields of the page, by name; searches can be filtered by them.
    """

    page_id: str
    document: str
    page: int
    file: str
    width: int
    height: int
    text: str | None = None
    metadata: Mapping[str, str | int | float | bool] = dataclasses.field(
        default_factory=dict, hash=False)


class PageStore:
    """The pages of a manifest, in its order; safe to use from many threads.

    Pages and documents are known by their names in any form of Unicode; ids are as the
    manifest has them.

    Args:
      folder: what the pages' files are relative to.
      pages: the pages; their ids are unique.
      cache_bytes: decoded full-resolution pixels kept in memory at most.
      lease: keeps the pages' files on disk.

    Attributes:
      folder: what the pages' files are relative to.
      ids: ids of the pages, in order.
      lease: keeps the pages' files on disk; None if nobody deletes them, or it may happen.
    """

    def __init__(self, folder: Path, pages: Sequence[Page], cache_bytes: int = 512 << 20,
                 lease: Lease | None = None):
        self.folder = Path(folder)
        self.lease = lease
        self._pages = {page.page_id: page for page in pages}
        # Ids by their form NFC, as far as it is another.
        self._spelled = {form: i for i in self._pages if (form := nfc(i)) != i}
        if len(self._pages) != len(pages) or not self._spelled.keys().isdisjoint(self._pages):
            different = len({nfc(page_id) for page_id in self._pages})
            raise ValueError(f'{len(pages)} pages with {different} different ids')
        self.ids: tuple[str, ...] = tuple(self._pages)
        self._numbers = {(nfc(page.document), page.page): page.page_id for page in pages}
        self._images = _ImageCache(cache_bytes)

    @classmethod
    def open(cls, manifest: Path, cache_bytes: int = 512 << 20, leased: bool = True
             ) -> 'PageStore':
        """Reads a manifest: JSON lines, one page a line, the fields of `Page`.

        Images of an ingestion stay on disk as long as the store is there, whatever is ingested
        meanwhile.

        Args:
          manifest: the file; image files are relative to its folder.
          cache_bytes: decoded full-resolution pixels kept in memory at most.
          leased: False does not keep the images.

        Raises:
          FileNotFoundError: if the manifest or an image file is missing.
          ValueError: for a line or a field that is wrong; the message names
            file, line and field.
        """
        manifest = existing(Path(manifest))
        if not manifest.is_file():
            raise FileNotFoundError(f'{manifest}: no such page manifest')
        lines: dict[str, int] = {}
        pages = []
        lease = None
        if leased and (manifest.parent / INGESTED).is_file():
            text, lease = read_leased(manifest)
        else:
            text = manifest.read_text('utf-8')
        for number, line in enumerate(text.split('\n'), start=1):
            if not line.strip():
                continue
            where = f'{manifest}, line {number}'
            page = _parse_page(line, where)
            form = nfc(page.page_id)
            if form in lines:
                raise ValueError(f'{where}: page_id {page.page_id!r} stands already in line '
                                 f'{lines[form]}')
            file = manifest.parent / page.file
            if not file.is_file():
                file = existing(file)
                if not file.is_file():
                    raise FileNotFoundError(f'{where}: file {page.file!r} does not exist in '
                                            f'{manifest.parent}')
                page = dataclasses.replace(
                    page, file=file.relative_to(manifest.parent).as_posix())
            lines[form] = number
            pages.append(page)
        if not pages:
            raise ValueError(f'{manifest}: holds no page')
        return cls(manifest.parent, pages, cache_bytes, lease)

    @staticmethod
    def write(manifest: Path, pages: Iterable[Page]) -> None:
        """Writes a manifest that `open` reads; an old one is replaced atomically.

        Raises:
          ValueError: for a duplicate id or a field that `open` would refuse.
        """
        manifest = Path(manifest)
        ids: set[str] = set()
        lines = []
        for number, page in enumerate(pages, start=1):
            fields = dataclasses.asdict(page)
            if page.text is None:
                del fields['text']
            if not page.metadata:
                del fields['metadata']
            line = json.dumps(fields, ensure_ascii=False)
            where = f'{manifest}, line {number}'
            _parse_page(line, where)
            if nfc(page.page_id) in ids:
                raise ValueError(f'{where}: page_id {page.page_id!r} stands there twice')
            ids.add(nfc(page.page_id))
            lines.append(line)
        manifest.parent.mkdir(parents=True, exist_ok=True)
        partial = manifest.with_name(f'{manifest.name}.{os.getpid()}.partial')
        partial.write_text('\n'.join(lines) + '\n', 'utf-8')
        sync(partial)
        os.replace(partial, manifest)
        sync(manifest.parent)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Page]:
        return iter(self._pages.values())

    def __contains__(self, page_id: object) -> bool:
        return isinstance(page_id, str) and self._own_id(page_id) in self._pages

    def __getitem__(self, page_id: str) -> Page:
        own = self._own_id(page_id)
        if own not in self._pages:
            raise KeyError(f'no page {page_id!r} in {self.folder}')
        return self._pages[own]

    def _own_id(self, page_id: str) -> str:
        """Returns a page's id as the manifest has it, if there is such a page."""
        if page_id in self._pages:
            return page_id
        form = nfc(page_id)
        return self._spelled.get(form, form)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the manifest says of the pages, in order."""
        # Empty metadata is left out: pages without any keep the fingerprint they had.
        fields = [dataclasses.astuple(page)[:None if page.metadata else -1] for page in self]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    def find(self, document: str, page: int) -> str | None:
        """Returns the id of a document's page number (from 1); None if it is not there."""
        return self._numbers.get((nfc(document), page))

    def path(self, page_id: str) -> Path:
        """Returns the page's image file."""
        return self.folder / self[page_id].file

    def image(self, page_id: str) -> Image.Image:
        """Returns the page upright, RGB, at full resolution.

        The image may be shared with other callers: copy it before changing it.

        Raises:
          KeyError: for an unknown page.
          ValueError: if the file is no image, or not of the size stated.
        """
        page = self[page_id]
        image = self._images.get(page.page_id)
        if image is None:
            image = load_image(self.path(page_id))
            if image.size != (page.width, page.height):
                raise ValueError(f'{self.path(page_id)}: is {image.size[0]}x{image.size[1]}, the '
                                 f'manifest says {page.width}x{page.height} for {page_id!r}')
            self._images.put(page.page_id, image)
        return image


def scan_folder(folder: Path) -> list[Page]:
    """Lists the image files of a folder as pages of documents.

    The images of a subfolder are the pages of a document named after it, numbered as their
    names are if all of them are (`report/03.png` is page 3 of `report`), else in their natural
    order. Images at the top are the pages of the documents that their names tell, if all of
    them do (`deck_3.jpg` is page 3 of `deck`), else of one that is named like the folder.
    A subfolder whose files tell of several documents is such a flat folder, too: `img/deck_3.jpg`
    is page 3 of `img/deck`. A page's id is its path without the ending,
    in Unicode's form NFC.

    Args:
      folder: is searched with all its subfolders.

    Raises:
      FileNotFoundError: if it holds no image.
      ValueError: if two files differ in their suffix only, or one is no image.
    """
    folder = Path(folder)
    files = sorted((p for p in folder.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES),
                   key=lambda p: natural_key(nfc(p.relative_to(folder).as_posix())))
    if not files:
        raise FileNotFoundError(f'{folder}: no {", ".join(IMAGE_SUFFIXES)} file there')
    taken: dict[str, str] = {}
    folders: dict[str, list[str]] = {}
    for path in files:
        name = path.relative_to(folder)
        page_id = nfc(name.with_suffix('').as_posix())
        if page_id in taken:
            raise ValueError(f'{path}: page id {page_id!r} is taken by {taken[page_id]}')
        taken[page_id] = name.as_posix()
        folders.setdefault(nfc(name.parent.as_posix()), []).append(nfc(name.stem))
    places: dict[str, tuple[str, int]] = {}
    for parent, stems in folders.items():
        at_top = parent == '.'
        named = _documents(stems, nfc(folder.resolve().name) if at_top else parent, at_top)
        places |= {stem if at_top else f'{parent}/{stem}': place for stem, place in named.items()}
    pages = [Page(page_id, *places[page_id], file, *upright_size(folder / file))
             for page_id, file in taken.items()]
    return pages


def _documents(stems: Sequence[str], whole: str, at_top: bool) -> dict[str, tuple[str, int]]:
    """Returns document and page number of each image of a folder; see `scan_folder`.

    Args:
      stems: names without their endings, in order.
      whole: the document that the folder is, if it is one.
      at_top: whether `whole` is the folder that is scanned, which is no part of names.
    """
    numbered = numbered_names(stems)
    if len(numbered) == len(stems) == len(set(numbered.values())):
        names = {name for name, _ in numbered.values()}
        if '' not in names and len(names) > (0 if at_top else 1):
            prefix = '' if at_top else f'{whole}/'
            return {stem: (prefix + name, page) for stem, (name, page) in numbered.items()}
        if len(names) == 1:
            return {stem: (whole, page) for stem, (_, page) in numbered.items()}
    return {stem: (whole, place) for place, stem in enumerate(stems, start=1)}


def _parse_page(line: str, where: str) -> Page:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{where}: not JSON: {error}') from error
    if not isinstance(values, dict):
        raise ValueError(f'{where}: expected an object, got {values!r}')
    fields = {f.name for f in dataclasses.fields(Page)}
    for name in fields - {'text', 'metadata'} - set(values):
        raise ValueError(f'{where}: field {name!r} is missing')
    page = Page(**{name: values[name] for name in fields & set(values)})
    for name in ('page_id', 'document', 'file'):
        _check(isinstance(values[name], str) and bool(values[name]), where, name,
               'a non-empty string', values[name])
    for name in ('page', 'width', 'height'):
        _check(type(values[name]) is int and values[name] >= 1, where, name,
               'a positive integer', values[name])
    _check(page.text is None or isinstance(page.text, str), where, 'text', 'a string', page.text)
    _check(not Path(page.file).is_absolute(), where, 'file', 'a relative path', page.file)
    check_metadata(page.metadata, where)
    return page


def _check(good: bool, where: str, field: str, expected: str, value: Any) -> None:
    if not good:
        raise ValueError(f'{where}: field {field!r}: expected {expected}, got {value!r}')


def check_metadata(metadata: Any, where: str) -> None:
    """Raises a ValueError, starting with `where`, if these are no fields of a page's own.

    They are a mapping of names to strings, finite numbers and booleans. `page_id`,
    `document` and `page` are not free: filters know them as the page's own.
    """
    _check(isinstance(metadata, dict), where, 'metadata', 'an object', metadata)
    for name, value in metadata.items():
        _check(isinstance(name, str) and name not in ('', 'page_id', 'document', 'page'), where,
               'metadata', 'names other than "", page_id, document and page', name)
        good = isinstance(value, str | int) or isinstance(value, float) and math.isfinite(value)
        _check(good, where, f'metadata.{name}', 'a string, finite number or boolean', value)


class _ImageCache:
    """Least-recently-used images, bounded by the bytes of their pixels."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._size = 0
        self._images: OrderedDict[str, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Image.Image | None:
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._images.get(key)

    def put(self, key: str, image: Image.Image) -> None:
        with self._lock:
            if key in self._images:
                return
            self._images[key] = image
            self._size += _image_bytes(image)
            while self._size > self._capacity:
                _, old = self._images.popitem(last=False)
                self._size -= _image_bytes(old)


def _image_bytes(image: Image.Image) -> int:
    return image.width * image.height * _BYTES_PER_PIXEL
