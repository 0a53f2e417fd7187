"""Own fields of documents and pages, from a CSV or JSON lines file beside them."""

import csv
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrag_jax.corpus.ingestion.sources import OWN_FIELDS as FILES
from vrag_jax.corpus.ingestion.sources import source_names
from vrag_jax.corpus.names import existing, nfc
from vrag_jax.corpus.pages import check_metadata

Value = str | int | float | bool
_Key = tuple[int, str, int | None]


class Metadata:
    """Fields by source, file and page.

    A row names a file, relative to its source folder, in `file_name`: a PDF, an image, or a
    folder of images ('.': the source folder itself); where it has a `page`, it is of that
    page only. All else in it are fields. Later rows win, and rows of a page over those of its
    document.

    Args:
      rows: source, file, page and fields.
      lost: files of rows that no source has.
      ambiguous: files of rows that several sources have, with what they must be.
      prefixes: what messages put before the files of each source.
    """

    def __init__(self, rows: Iterable[tuple[int, str, int | None, Mapping[str, Value]]] = (),
                 lost: Iterable[str] = (), ambiguous: Iterable[str] = (),
                 prefixes: Sequence[str] = ()):
        self._fields: dict[_Key, dict[str, Value]] = {}
        self._used: set[_Key] = set()
        self._lost = tuple(lost)
        self.ambiguous = tuple(sorted(set(ambiguous)))
        self._prefixes = prefixes
        for source, name, page, fields in rows:
            self._fields.setdefault((source, name, page), {}).update(fields)

    def fields(self, source: int, document_label: str, page_label: str, page: int
               ) -> dict[str, Value]:
        """Returns a page's fields, ordered by name.

        Args:
          source: number of its source.
          document_label: file or folder of its document.
          page_label: file of the page; that of the document where pages have none.
          page: its number.
        """
        merged: dict[str, Value] = {}
        keys: list[_Key] = [(source, document_label, None), (source, page_label, None),
                            (source, document_label, page)]
        if page_label != document_label:  # An image of a folder, which has one page itself.
            keys.append((source, page_label, 1))
        for key in keys:
            merged |= self._fields.get(key, {})
        self._used.update(keys)
        return dict(sorted(merged.items()))

    def unknown(self, labels: Sequence[Collection[str]]) -> list[str]:
        """Returns what rows are of that is no file or folder of its source, nor a page of it.

        Pages are those of which `fields` has been asked.

        Args:
          labels: files and folders of each source.
        """
        return sorted({*self._lost, *(
            self._prefixes[source] + name + (f', page {page}' if name in labels[source] else '')
            for source, name, page in self._fields
            if name not in labels[source] or page and (source, name, page) not in self._used)})


def read_metadata(file: str, sources: Sequence[Path], labels: Sequence[Collection[str]]
                  ) -> Metadata:
    """Reads the given file, or those that lie in the source folders.

    Rows of a file in a source folder are of that source. Those of the given file are of the
    source that has the file they name; where several have one of that name, and to name what
    lies in a certain source, the name of its folder stands before it: `beta/annual.pdf`.

    Args:
      file: CSV or JSON lines; '' looks for one of `FILES` at the top of each folder.
      sources: files and folders.
      labels: files and folders of images of each source.

    Raises:
      FileNotFoundError: if the given file does not exist.
      ValueError: for a row that is wrong; the message names file, line and field.
    """
    paths = [existing(Path(source)) for source in sources]
    several = len(set(map(Path.resolve, paths))) > 1
    names = source_names(paths)
    prefixes = [f'{name}/' if several else '' for name in names]
    if not file:
        return Metadata(((number, *row) for number, source in enumerate(paths) for name in FILES
                         if (path := source / name).is_file() for row in _read(path)),
                        prefixes=prefixes)
    own = existing(Path(file))
    if not own.is_file():
        raise FileNotFoundError(f'metadata {file}: no such file')
    rows, lost, ambiguous = [], [], []
    folders = [nfc((path if path.is_dir() else path.parent).resolve().as_posix())
               for path in paths]
    for name, page, fields in _read(own):
        places = _places(name, folders, labels)
        if len({(folders[source], label) for source, label in places}) > 1:
            told = ' or '.join(f'{names[source]}/{label}'.rstrip('/') for source, label in places)
            ambiguous.append(f'{name or "."}, which must be {told}')
        elif places:
            rows += [(source, label, page, fields) for source, label in places]
        else:
            lost.append(name or '.')
    return Metadata(rows, lost, ambiguous, prefixes)


def _places(name: str, folders: Sequence[str], labels: Sequence[Collection[str]]
            ) -> list[tuple[int, str]]:
    """Returns the sources that have a file of this name, and the file's label in them.

    Args:
      name: relative to a source, or with the name of its folder before it, or more of its path.
      folders: paths of the sources.
      labels: files and folders of images in each.
    """
    plain = [(source, name) for source, known in enumerate(labels) if name in known]
    if plain:
        return plain
    parts = name.lstrip('/').split('/')
    cuts = [('/'.join(parts[:at]), '/'.join(parts[at:])) for at in range(1, len(parts) + 1)]
    return [(source, label) for folder, label in cuts for source, known in enumerate(labels)
            if label in known and folders[source].endswith(f'/{folder}')]


def _read(file: Path) -> list[tuple[str, int | None, dict[str, Value]]]:
    try:
        rows = list(_csv_rows(file) if file.suffix.lower() == '.csv' else _json_rows(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'metadata {file}: expected CSV or JSON lines in UTF-8: {error}'
                         ) from error
    found = []
    for where, row in rows:
        name, page = row.pop('file_name', None), row.pop('page', None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: field 'file_name': expected a file's name, got {name!r}")
        if page is not None and (type(page) is not int or page < 1):
            raise ValueError(f"{where}: field 'page': expected a positive integer, got {page!r}")
        check_metadata(row, where)
        label = nfc(Path(name).as_posix())
        found.append(('' if label == '.' else label, page, row))
    return found


def _csv_rows(file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    with file.open(encoding='utf-8-sig', newline='') as stream:  # Spreadsheets write a BOM.
        reader = csv.DictReader(stream)
        for row in reader:
            where = f'{file}, line {reader.line_num}'
            if None in row:
                raise ValueError(f'{where}: has more cells than there are columns')
            # An empty cell is a field that the row does not have.
            yield where, {name: value if name == 'file_name' else _cell(value)
                          for name, value in row.items() if value}


def _cell(text: str) -> Value:
    """Returns an integer, a number or a boolean where a cell reads as one."""
    if re.fullmatch(r'-?(0|[1-9]\d*)', text):  # '007' is a name.
        return int(text)
    if re.fullmatch(r'-?(0|[1-9]\d*)\.\d+([eE][+-]?\d+)?', text):
        return float(text)
    return {'true': True, 'false': False}.get(text.lower(), text)


def _json_rows(file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file.read_text('utf-8').split('\n'), start=1):
        if line.strip():
            where = f'{file}, line {number}'
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f'{where}: not JSON: {error}') from error
            if not isinstance(row, dict):
                raise ValueError(f'{where}: expected an object, got {row!r}')
            yield where, row
