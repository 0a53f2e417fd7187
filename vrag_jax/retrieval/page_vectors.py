"""Vectors of a corpus's pages on disk: memory-mapped rows, and where each page's begin."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vrag_jax.retrieval.artifact import ArtifactError, read_artifact, write_artifact

_KIND = 'page_vectors'
_ROWS, _PAGES = 'rows.bin', 'pages.json'
DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(jnp.bfloat16)}


@dataclasses.dataclass(frozen=True)
class PageVectors:
    """Vectors of pages, in the order of a corpus.

    Attributes:
      rows: `[total, dims]` float32 or bfloat16 unit rows, memory-mapped.
      offsets: `[pages + 1]` int64; page `i` has `rows[offsets[i]:offsets[i + 1]]`.
      ids: of the pages.
      keys: digest of each page's content; equal keys have equal vectors.
      fingerprint: of the embedder.
    """

    rows: np.ndarray
    offsets: np.ndarray
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, page: int) -> np.ndarray:
        """Returns the `[T, dims]` rows of a page."""
        return self.rows[self.offsets[page] : self.offsets[page + 1]]

    @property
    def dims(self) -> int:
        """Dimensions of a vector."""
        return self.rows.shape[1]

    @classmethod
    def open(cls, directory: Path) -> 'PageVectors':
        """Reads what `write_page_vectors` wrote.

        Raises:
          FileNotFoundError: if there is nothing.
          ArtifactError: if it is corrupt.
        """
        folder, fields = read_artifact(directory, _KIND)
        try:
            dtype, dims = DTYPES[fields['dtype']], int(fields['dims'])
            pages = json.loads((folder / _PAGES).read_text('utf-8'))
            counts, ids, keys = pages['counts'], pages['ids'], pages['keys']
            fingerprint = fields['fingerprint']
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f'{directory}: {error!r}') from error
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        file = folder / _ROWS
        if not len(ids) == len(keys) == len(counts) or (
                file.stat().st_size != offsets[-1] * dims * dtype.itemsize):
            raise ArtifactError(f'{file}: does not hold the rows that its manifest says')
        rows = np.memmap(file, dtype, 'r', shape=(int(offsets[-1]), dims))
        return cls(rows, offsets, tuple(ids), tuple(keys), fingerprint)


def write_page_vectors(
    directory: Path, pages: Iterable[np.ndarray], ids: Sequence[str], keys: Sequence[str],
    dims: int, fingerprint: str, dtype: str,
) -> None:
    """Writes vectors, or replaces those that are there, atomically.

    Args:
      directory: is made if needed.
      pages: `[T, dims]` of each page, taken one after the other.
      ids, keys, dims, fingerprint: see `PageVectors`.
      dtype: of the rows on disk, one of `DTYPES`.
    """
    def write_files(folder: Path) -> dict[str, Any]:
        counts = []
        with (folder / _ROWS).open('wb') as file:
            for page in pages:
                counts.append(len(page))
                file.write(np.ascontiguousarray(page, DTYPES[dtype]).view(np.uint8).data)
        (folder / _PAGES).write_text(json.dumps({
            'ids': list(ids), 'keys': list(keys), 'counts': counts,
        }, ensure_ascii=False), 'utf-8')
        return {'dtype': dtype, 'dims': dims, 'fingerprint': fingerprint}

    write_artifact(directory, _KIND, write_files)
