"""Inverted lists of terms in memory-mapped files: which pages have a term, and how often."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.lexical.term_counts import GROUPS, Counts

_DTYPES = {'terms': (np.int32,), 'starts': (np.int64,), 'rows': (np.int32,),
           'counts': (np.uint8, np.uint16, np.int32), 'lengths': (np.int64,),
           'digests': (np.uint8,)}
_STEP = 1 << 22  # Postings that are worked on at a time.
_DIGEST = 16  # Bytes.


class Postings:
    """Pages' terms, by term; immutable.

    Attributes:
      terms: int32 [T], ascending.
      starts: int64 [T + 1]: the postings of term t are `starts[t]:starts[t + 1]`.
      rows: int32 [P], the page of each posting; ascending for each term.
      counts: unsigned or int32 [P], how often the term is on the page.
      lengths: int64 [groups, pages], terms of each group on each page.
      digests: uint8 [pages, 16], equal for pages of equal counts.
    """

    def __init__(self, arrays: dict[str, np.ndarray], folder: Path | None = None,
                 keeper: Any = None):
        self.terms, self.starts = arrays['terms'], arrays['starts']
        self.rows, self.counts = arrays['rows'], arrays['counts']
        self.lengths, self.digests = arrays['lengths'], arrays['digests']
        self._folder = folder  # Where the files lie that the arrays are mapped from.
        self._keeper = keeper  # Removes a temporary folder when nobody maps it any more.

    @classmethod
    def of(cls, counts: Counts, buckets: int) -> 'Postings':
        """Returns the postings of pages' counts, in memory."""
        matrix = counts.matrix
        digests = np.empty((matrix.shape[0], _DIGEST), np.uint8)
        names, ends = counts.terms[matrix.indices], matrix.indptr.tolist()
        for row, (start, stop) in enumerate(zip(ends, ends[1:], strict=False)):
            digest = hashlib.blake2b(names[start:stop].tobytes(), digest_size=_DIGEST)
            digest.update(matrix.data[start:stop].tobytes())
            digests[row] = np.frombuffer(digest.digest(), np.uint8)
        columns = matrix.tocsc()
        return cls({'terms': counts.terms, 'starts': columns.indptr.astype(np.int64),
                    'rows': columns.indices.astype(np.int32, copy=False),
                    'counts': columns.data.astype(_smallest(columns.data)),
                    'lengths': counts.lengths(buckets), 'digests': digests})

    @classmethod
    def merged(cls, parts: Sequence['Postings'], kept: Sequence[np.ndarray],
               scratch: Path | None = None) -> 'Postings':
        """Returns the postings of pages of several others, as if counted together.

        Args:
          parts: one or more.
          kept: bool [pages] of each: which of its pages are taken over.
          scratch: where a temporary folder is made for files in which the arrays lie. On the
            file system on which they are saved later, nothing has to be copied then. None keeps
            them in memory.
        """
        keeper = scratch and tempfile.TemporaryDirectory(
            prefix='lists-', dir=scratch, ignore_cleanup_errors=True)
        folder = Path(keeper.name) if keeper else None
        sizes = [part._sizes(keep) for part, keep in zip(parts, kept, strict=True)]
        used = np.unique(np.concatenate(
            [part.terms[size > 0] for part, size in zip(parts, sizes, strict=True)]))
        total = np.zeros(len(used), np.int64)
        for part, size in zip(parts, sizes, strict=True):
            total[np.searchsorted(used, part.terms[size > 0])] += size[size > 0]
        starts = np.concatenate([[0], np.cumsum(total)])
        dtype = max((part.counts.dtype for part in parts), key=lambda d: d.itemsize)
        rows = _array(folder, 'rows', int(starts[-1]), np.dtype(np.int32))
        counts = _array(folder, 'counts', int(starts[-1]), dtype)
        free, first = starts[:-1].copy(), 0  # Where the next posting of each term goes.
        for part, keep, size in zip(parts, kept, sizes, strict=True):
            numbers = (np.cumsum(keep) - 1 + first).astype(np.int32)  # New numbers of pages.
            for begin, end in part._slices():
                low, high = part.starts[begin], part.starts[end]
                fits = keep[part.rows[low:high]]
                amount = size[begin:end]
                place = np.searchsorted(used, part.terms[begin:end][amount > 0])
                amount = amount[amount > 0]
                ends = np.cumsum(amount)
                target = np.repeat(free[place] - ends + amount, amount) + np.arange(fits.sum())
                rows[target] = numbers[part.rows[low:high][fits]]
                counts[target] = part.counts[low:high][fits]
                free[place] += amount
            first += int(keep.sum())
        arrays = {'terms': used, 'starts': starts, 'rows': rows, 'counts': counts,
                  'lengths': np.concatenate([part.lengths[:, keep] for part, keep in zip(
                      parts, kept, strict=True)], axis=1),
                  'digests': np.concatenate([part.digests[keep] for part, keep in zip(
                      parts, kept, strict=True)])}
        if folder is None:
            return cls(arrays)
        for name in ('terms', 'starts', 'lengths', 'digests'):
            np.save(folder / f'{name}.npy', arrays[name], allow_pickle=False)
        for name, array in (('rows', rows), ('counts', counts)):
            if isinstance(array, np.memmap):
                array.flush()
            else:
                np.save(folder / f'{name}.npy', array, allow_pickle=False)
        return cls.read(folder, keeper)

    def __len__(self) -> int:
        """Pages."""
        return self.lengths.shape[1]

    def having(self, gone: np.ndarray) -> np.ndarray:
        """Returns how many pages of bool [pages] have each term, int64 [T]."""
        return self._sizes(gone) if gone.any() else np.zeros(len(self.terms), np.int64)

    def write_files(self, folder: Path) -> None:
        """Writes the arrays into a folder; links the files that they are mapped from."""
        for name in _DTYPES:
            target = folder / f'{name}.npy'
            if self._folder is not None:
                source = self._folder / target.name
                try:
                    os.link(source, target)
                    continue
                except OSError:  # Another file system, or a new version has replaced the folder.
                    if source.is_file():
                        shutil.copyfile(source, target)
                        continue
            np.save(target, getattr(self, name), allow_pickle=False)

    @classmethod
    def read(cls, folder: Path, keeper: Any = None) -> 'Postings':
        """Maps what `write_files` wrote.

        Raises:
          ArtifactError: if a file is missing, no array, or not of the shape that others ask for.
        """
        arrays = {}
        for name, dtypes in _DTYPES.items():
            arrays[name] = read_array(folder / f'{name}.npy', dtypes)
        starts, pages = arrays['starts'], arrays['lengths'].shape[-1]
        total = int(starts[-1]) if starts.ndim == 1 and len(starts) else -1
        for name, shape in {'starts': (len(arrays['terms']) + 1,), 'rows': (total,),
                            'counts': (total,), 'lengths': (len(GROUPS), pages),
                            'digests': (pages, _DIGEST)}.items():
            if arrays[name].shape != shape:
                raise ArtifactError(f'{folder / name}.npy: expected {list(shape)} numbers, got '
                                    f'{list(arrays[name].shape)}')
        return cls(arrays, folder, keeper)

    def _sizes(self, keep: np.ndarray) -> np.ndarray:
        """How many pages that are kept have each term."""
        if keep.all():
            return np.diff(self.starts)
        sizes = np.zeros(len(self.terms), np.int64)
        for begin, end in self._slices():
            low, high = self.starts[begin], self.starts[end]
            seen = np.concatenate([[0], np.cumsum(keep[self.rows[low:high]])])
            sizes[begin:end] = np.diff(seen[self.starts[begin:end + 1] - low])
        return sizes

    def _slices(self) -> list[tuple[int, int]]:
        """Ranges of terms of about `_STEP` postings each."""
        marks = np.arange(0, int(self.starts[-1]), _STEP)
        cuts = np.unique([*np.searchsorted(self.starts[:-1], marks), len(self.terms)])
        return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))


def read_array(file: Path, dtypes: Sequence[Any]) -> np.ndarray:
    """Maps an array of one of these types.

    Raises:
      ArtifactError: if it is none, or of another type; names the file.
    """
    try:
        # As a plain array: each slice of a `memmap` would be one, which takes longer to make.
        array = np.asarray(np.load(file, mmap_mode='r', allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ArtifactError(f'{file}: {error!r}') from error
    if array.dtype not in dtypes:
        raise ArtifactError(f'{file}: expected numbers of type {np.dtype(dtypes[0]).name}, got '
                            f'{array.dtype}')
    return array


def _array(folder: Path | None, name: str, size: int, dtype: np.dtype) -> np.ndarray:
    if folder is None or not size:
        return np.empty(size, dtype)
    return np.lib.format.open_memmap(folder / f'{name}.npy', 'w+', dtype, (size,))


def _smallest(counts: np.ndarray) -> np.dtype:
    most = int(counts.max(initial=0))
    return np.dtype(np.uint8 if most < 1 << 8 else np.uint16 if most < 1 << 16 else np.int32)
