"""Resolves a question's reference pages to pages of the corpus."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

from vrag_jax.corpus.numbered_names import numbered_names
from vrag_jax.corpus.pages import IMAGE_SUFFIXES, PageStore

_DOCUMENT_SUFFIXES = frozenset((
    '.pdf', '.ppt', '.pptx', '.doc', '.docx', '.xls', '.xlsx', '.odt', '.odp', '.htm', '.html',
    '.txt', '.md', *IMAGE_SUFFIXES))

_Parts = tuple[str, ...]


class ReferencePages:
    """Finds pages by a document's file name and a page's number.

    Documents of a corpus are named by their paths without endings, e.g. `2024/annual`. What a
    question calls `file_name` is found

    1. by path: the document with that path, else the one that shares most folders at the
       path's end: `./data/2024/annual.pdf`;
    2. by name, where no other document has it: `annual.pdf`;
    3. by numbered names of image files or page ids: page 3 of `deck.pdf` is `img/deck_3.jpg`,
       whatever document it has been made a part of.

    Unicode's forms of the same characters are equal, and backslashes are slashes. Where
    nothing else fits, so are upper and lower case, blanks, '_' and '-', and %20.

    A name in another folder than the question says is taken only where no other question means
    a document of that name in a third folder: of `tesla/10-K.pdf` and `ibm/10-K.pdf` neither
    is `apple/10-K`.

    Args:
      store: the pages there are.
      file_names: of all questions.
    """

    def __init__(self, store: PageStore, file_names: Iterable[str] = ()):
        self._store = store
        folders: dict[str, set[_Parts]] = defaultdict(set)
        for name in file_names:
            *folder, last = _forms(name)[0]
            if folder:
                folders[last].add(tuple(folder))
        self._contested = {name for name, meant in folders.items() if len(meant) > 1}
        self._documents = _Names({page.document for page in store})
        self._by_number = _numbered_pages(store)
        self._numbered = _Names({name for name, _ in self._by_number})

    def find(self, file_name: str, pages: Sequence[int]) -> tuple[list[str], list[str]]:
        """Looks up the reference pages of a question.

        Args:
          file_name: of the document, with or without folders and ending.
          pages: numbers from 1.

        Returns:
          The ids of the pages that are there, and a text on each that is not.
        """
        documents = self._documents.find(file_name)
        files = self._numbered.find(file_name)
        if _forms(file_name)[0][-1] in self._contested:
            documents, files = ([name for name in names if _agrees(file_name, name)]
                                for names in (documents, files))
        found, missing = [], []
        for page in pages:
            page_id = self._store.find(documents[0], page) if len(documents) == 1 else None
            if page_id is None and len(files) == 1:
                page_id = self._by_number.get((files[0], page))
            if page_id is not None:
                found.append(page_id)
            else:
                missing.append(f'{file_name} page {page}' + _doubt(documents or files))
        return found, missing


def _agrees(file_name: str, document: str) -> bool:
    """Whether two paths agree in the last folder that both have."""
    wanted, has = _forms(file_name)[0], _forms(document)[0]
    return min(len(wanted), len(has)) < 2 or _loose(wanted)[-2] == _loose(has)[-2]


def _doubt(documents: Sequence[str]) -> str:
    if len(documents) == 1:
        return f' (of {documents[0]!r} there are other pages)'
    return f' (is it {" or ".join(map(repr, documents[:3]))}?)' if documents else ''


def _numbered_pages(store: PageStore) -> dict[tuple[str, int], str]:
    """Returns page ids by document and number, as the names of files and the ids tell them."""
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for name_of in (lambda page: PurePosixPath(page.file).with_suffix('').as_posix(),
                    lambda page: page.page_id):
        folders: dict[str, dict[str, str]] = defaultdict(dict)
        for page in store:
            parent, _, stem = name_of(page).rpartition('/')
            folders[parent][stem] = page.page_id
        for parent, stems in folders.items():
            for stem, (name, number) in numbered_names(stems).items():
                if name:
                    found[f'{parent}/{name}' if parent else name, number].add(stems[stem])
    return {place: ids.pop() for place, ids in found.items() if len(ids) == 1}


class _Names:
    """Documents by name, as strictly as possible.

    Args:
      names: paths without or with endings.
    """

    def __init__(self, names: Iterable[str]):
        # By strictness, then by the last part: pairs of all parts and the name.
        self._by_last: tuple[dict[str, list[tuple[_Parts, str]]], ...] = (
            defaultdict(list), defaultdict(list))
        for name in sorted(names):
            for index, simple in zip(self._by_last, (_same, _loose), strict=True):
                for parts in dict.fromkeys(map(simple, _forms(name, indexed=True))):
                    index[parts[-1]].append((parts, name))
        self._known: dict[str, list[str]] = {}

    def find(self, file_name: str) -> list[str]:
        """Returns the one document that is meant, those that may be, or none."""
        if file_name not in self._known:
            self._known[file_name] = self._find(file_name)
        return self._known[file_name]

    def _find(self, file_name: str) -> list[str]:
        for index, simple in zip(self._by_last, (_same, _loose), strict=True):
            for parts in map(simple, _forms(file_name)):
                near: dict[tuple[bool, int], set[str]] = defaultdict(set)
                for other, name in index.get(parts[-1], ()):
                    near[other == parts, _shared(other, parts)].add(name)
                if near:
                    return sorted(near[max(near)])
        return []


def _forms(name: str, indexed: bool = False) -> list[_Parts]:
    """Returns the parts of a path, without and with its ending, the likelier first.

    What follows the last dot of a document that is there (`indexed`) is no ending unless it is
    known to be one: else 2305.12345 and 2305.99999 were the same.
    """
    text = unicodedata.normalize('NFC', name).replace('\\', '/')
    parts = tuple(part for part in text.split('/') if part not in ('', '.', '..')) or (text,)
    path = PurePosixPath(parts[-1])
    if not path.suffix:
        return [parts]
    without = (*parts[:-1], path.stem)
    if path.suffix.lower() in _DOCUMENT_SUFFIXES:
        return [without, parts]
    return [parts] if indexed else [parts, without]


def _same(parts: _Parts) -> _Parts:
    return parts


def _loose(parts: _Parts) -> _Parts:
    return tuple(re.sub(r'[\s_+-]+', '_', unicodedata.normalize('NFC', unquote(part)).casefold())
                 for part in parts)


def _shared(a: _Parts, b: _Parts) -> int:
    """Parts at their ends that two paths have in common."""
    count = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x != y:
            break
        count += 1
    return count
