"""Vectors of a corpus's pages on disk: memory-mapped files, and where in them each page's lie."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vrag_jax.corpus.artifact import ArtifactError, open_artifact, write_artifact
from vrag_jax.retrieval.vector_checks import digest_of

_KIND = 'page_vectors'
_PAGES = 'pages.json'
_FIRST_FILE = 'rows.bin'  # The only one of versions that know no others.
_UNUSED = 0.3  # Share of the files that pages which are gone may take.
_MOST_FILES = 64
DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(jnp.bfloat16)}

Place = tuple[int, int, int]
"""File, first row and number of rows of a page's vectors."""


@dataclasses.dataclass(frozen=True, eq=False)
class PageVectors(Sequence[np.ndarray]):
    """Vectors of pages, in the order of a corpus: of page `i` the `[T, dims]` rows `[i]`.

    Attributes:
      files: `[rows, dims]` float32 or bfloat16 unit rows each, memory-mapped.
      paths: of the files.
      table: int64 `[pages, 3]`: the `Place` of each page's rows; equal pages share them.
      ids: of the pages.
      keys: digest of each page's content; equal keys have equal vectors.
      digests: of each page's rows, see `checks.digest_of`.
      fingerprint: of the embedder.
    """

    files: tuple[np.ndarray, ...]
    paths: tuple[Path, ...]
    table: np.ndarray
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    digests: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, page: Any) -> Any:
        if isinstance(page, slice):
            return [self[i] for i in range(*page.indices(len(self)))]
        file, first, count = self.table[page].tolist()
        return self.files[file][first : first + count]

    @property
    def dims(self) -> int:
        """Dimensions of a vector."""
        return self.files[0].shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Of the rows."""
        return self.files[0].dtype

    @classmethod
    def open(cls, directory: Path) -> 'PageVectors':
        """Reads what `write_page_vectors` wrote.

        Raises:
          FileNotFoundError: if there is nothing.
          ArtifactError: if it is corrupt.
        """
        return open_artifact(directory, _KIND, cls._from_files)

    @classmethod
    def _from_files(cls, folder: Path, fields: dict[str, Any]) -> 'PageVectors':
        try:
            dtype, dims = DTYPES[fields['dtype']], int(fields['dims'])
            pages = json.loads((folder / _PAGES).read_text('utf-8'))
            ids, keys, counts = pages['ids'], pages['keys'], pages['counts']
            paths = tuple(folder / name for name in fields.get('files', [_FIRST_FILE]))
            files = tuple(_mapped(path, dtype, dims) for path in paths)
            places = pages.get('places')
            if places is None:  # Of before there were several files: page after page.
                places = [[0, first] for first in np.cumsum([0, *counts])[:-1].tolist()]
            table = np.array([[*place, count] for place, count in zip(
                places, counts, strict=True)], np.int64).reshape(-1, 3)
            sizes = np.array([len(file) for file in files])
            fits = len(ids) == len(keys) == len(table) and np.min(table, initial=0) >= 0 and (
                table[:, 1] + table[:, 2] <= sizes[table[:, 0]]).all()
            digests = pages.get('digests') or [
                digest_of(files[f][a : a + n]) for f, a, n in table.tolist()]
            fingerprint = fields['fingerprint']
        except (KeyError, TypeError, ValueError, IndexError, OSError) as error:
            raise ArtifactError(f'{folder}: {error!r}') from error
        if not fits:
            raise ArtifactError(f'{folder / _PAGES}: names rows that are not in the files')
        return cls(files, paths, table, tuple(ids), tuple(keys), tuple(digests), fingerprint)

    def places(self) -> dict[str, Place]:
        """Returns where the rows of each key are."""
        return dict(zip(self.keys, map(tuple, self.table.tolist()), strict=True))


def write_page_vectors(
    directory: Path, ids: Sequence[str], keys: Sequence[str],
    rows_of: Callable[[str], np.ndarray], dims: int, fingerprint: str, dtype: str,
    old: PageVectors | None = None,
) -> None:
    """Writes vectors, or replaces those that are there, atomically.

    Files of the version before are linked, and only new rows are written; when much of them
    belongs to no page any more, or they have become many, all rows go into one file.

    Args:
      directory: is made if needed.
      ids, keys, dims, fingerprint: see `PageVectors`.
      rows_of: returns the `[T, dims]` rows of a key; asked once for each that has to be written.
      dtype: of the rows on disk, one of `DTYPES`.
      old: the version before, of the same embedder and dtype.
    """
    def write_files(folder: Path) -> dict[str, Any]:
        places, digests, names = _taken_over(folder, old, set(keys))
        name, first = f'rows-{len(names)}.bin' if names else _FIRST_FILE, 0
        new = [key for key in dict.fromkeys(keys) if key not in places]
        if new:
            with (folder / name).open('wb') as file:
                for key in new:
                    rows = np.ascontiguousarray(rows_of(key), DTYPES[dtype])
                    file.write(rows.view(np.uint8).data)
                    places[key] = len(names), first, len(rows)
                    digests[key] = digest_of(rows)
                    first += len(rows)
            names.append(name)
        (folder / _PAGES).write_text(json.dumps({
            'ids': list(ids), 'keys': list(keys), 'places': [places[key][:2] for key in keys],
            'counts': [places[key][2] for key in keys], 'digests': [digests[key] for key in keys],
        }, ensure_ascii=False), 'utf-8')
        return {'dtype': dtype, 'dims': dims, 'fingerprint': fingerprint, 'files': names}

    write_artifact(directory, _KIND, write_files)


def _taken_over(folder: Path, old: PageVectors | None, wanted: set[str]
                ) -> tuple[dict[str, Place], dict[str, str], list[str]]:
    """Links the files of a version that hold wanted rows; returns places, digests and names."""
    if old is None:
        return {}, {}, []
    places = {key: place for key, place in old.places().items() if key in wanted}
    used = sorted({file for file, _, _ in places.values()})
    rows = sum(count for _, _, count in places.values())
    if len(used) >= _MOST_FILES or rows < (1 - _UNUSED) * sum(len(old.files[i]) for i in used):
        return {}, {}, []
    names = [f'rows-{i}.bin' if i else _FIRST_FILE for i in range(len(used))]
    for file, name in zip(used, names, strict=True):
        try:
            os.link(old.paths[file], folder / name)
        except OSError:  # No links there, or another run has replaced that version.
            old.files[file].view(np.uint8).tofile(folder / name)
    number = {file: i for i, file in enumerate(used)}
    return ({key: (number[file], first, count) for key, (file, first, count) in places.items()},
            {k: d for k, d in zip(old.keys, old.digests, strict=True) if k in wanted}, names)


def _mapped(path: Path, dtype: np.dtype, dims: int) -> np.ndarray:
    size = path.stat().st_size
    if not size or size % (dims * dtype.itemsize):
        raise ValueError(f'{path}: {size} bytes are no rows of {dims} {dtype}')
    return np.memmap(path, dtype, 'r', shape=(size // (dims * dtype.itemsize), dims))
