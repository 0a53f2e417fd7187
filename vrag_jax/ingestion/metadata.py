"""Own fields of documents and pages, from a CSV or JSON lines file beside them."""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrag_jax.retrieval.pages import check_metadata

FILES = ('metadata.csv', 'metadata.jsonl')
Value = str | int | float | bool


class Metadata:
    """Fields by file and page.

    A row names a file, relative to its source folder, in `file_name`: a PDF, an image, or a
    folder of images ('.': the source folder itself); where it has a `page`, it is of that
    page only. All else in it are fields. Later rows win, and rows of a page over those of its
    document.
    """

    def __init__(self, rows: Iterable[tuple[str, int | None, Mapping[str, Value]]] = ()):
        self._fields: dict[tuple[str, int | None], dict[str, Value]] = {}
        self._used: set[tuple[str, int | None]] = set()
        for name, page, fields in rows:
            self._fields.setdefault((name, page), {}).update(fields)

    def fields(self, document_label: str, page_label: str, page: int) -> dict[str, Value]:
        """Returns a page's fields, ordered by name.

        Args:
          document_label: file or folder of its document.
          page_label: file of the page; that of the document where pages have none.
          page: its number.
        """
        merged: dict[str, Value] = {}
        keys = [(document_label, None), (page_label, None), (document_label, page)]
        if page_label != document_label:  # An image of a folder, which has one page itself.
            keys.append((page_label, 1))
        for key in keys:
            merged |= self._fields.get(key, {})
        self._used.update(keys)
        return dict(sorted(merged.items()))

    def unknown(self, labels: Iterable[str]) -> list[str]:
        """Returns what rows are of that is none of these files and folders, nor a page of them.

        Pages are those of which `fields` has been asked.
        """
        known = set(labels)
        return sorted({name if name not in known else f'{name}, page {page}'
                       for name, page in self._fields
                       if name not in known or page and (name, page) not in self._used})


def read_metadata(file: str, sources: Sequence[Path]) -> Metadata:
    """Reads the given file, or those that lie in the source folders.

    Args:
      file: CSV or JSON lines; '' looks for one of `FILES` at the top of each folder.
      sources: files and folders.

    Raises:
      FileNotFoundError: if the given file does not exist.
      ValueError: for a row that is wrong; the message names file, line and field.
    """
    if file:
        if not Path(file).is_file():
            raise FileNotFoundError(f'metadata {file}: no such file')
        files = [Path(file)]
    else:
        files = [path for source in sources for name in FILES
                 if (path := Path(source) / name).is_file()]
    return Metadata(row for path in files for row in _read(path))


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
        label = Path(name).as_posix()
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
