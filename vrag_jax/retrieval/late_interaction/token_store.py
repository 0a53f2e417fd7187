"""Token vectors of pages in memory-mapped files, cut into blocks of one static shape."""

import dataclasses
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vrag_jax.corpus.artifact import ArtifactError

STORAGES = ('bfloat16', 'binary')
_TABLE = 'token_pages.npy'
_RESIDENT = 256 << 20  # Bytes of mapped files that are read before they are let go of.


@dataclasses.dataclass(frozen=True)
class TokenConfig:
    """How tokens are kept.

    Attributes:
      storage: 'bfloat16', 2 bytes a dimension; 'binary', the sign of each dimension, 1 bit.
      pooling: side of the squares of an image's grid whose tokens are averaged to one;
        1 keeps all tokens, as are those of embedders that read text.
      block: a page's tokens fill whole blocks of so many.
    """

    storage: str = 'bfloat16'
    pooling: int = 1
    block: int = 32

    def __post_init__(self):
        if self.storage not in STORAGES:
            raise ValueError(f'storage must be one of {STORAGES}, got {self.storage!r}')
        if self.pooling < 1 or self.block < 1:
            raise ValueError('pooling and block must be positive, got '
                             f'{self.pooling} and {self.block}')


class TokenStore:
    """Tokens of pages, immutable; pages are added in files of their own.

    The last token of a page is repeated to fill its last block. That changes no
    maximum over the page's tokens, so MaxSim needs no mask.

    The files are memory-mapped, and let go of again whenever 256 MB of them have been
    read, so that they do not come to count as the process's own memory; the system
    keeps them cached as long as it has room.

    Attributes:
      config: how tokens are kept.
      dims: of a token.
      table: int64 [pages, 4]: file, first block, blocks and tokens of each page.
    """

    def __init__(self, config: TokenConfig, dims: int, files: Sequence['_MappedBlocks'],
                 table: np.ndarray):
        self.config = config
        self.dims = dims
        self.table = table
        self._files = tuple(files)

    @classmethod
    def build(cls, pages: Iterable[np.ndarray], dims: int, config: TokenConfig,
              scratch: Path | None = None) -> 'TokenStore':
        """Writes pages of [T, dims] tokens each to a file in a temporary folder.

        Args:
          pages: one after the other, so that they need not be in memory; T > 0.
          dims: of a token; a multiple of 8 for binary storage.
          config: how they are kept; `pooling` is not done here, see `pool_grid`.
          scratch: where the temporary folder is made. On the file system on which the
            store is saved later, nothing has to be copied then.

        Raises:
          ValueError: for a page without tokens, of other dimensions, or not finite.
        """
        if config.storage == 'binary' and dims % 8:
            raise ValueError(f'binary tokens need dimensions by the 8, got {dims}')
        folder = tempfile.TemporaryDirectory(prefix='tokens-', dir=scratch,
                                             ignore_cleanup_errors=True)
        path = Path(folder.name) / 'tokens.bin'
        table, first = [], 0
        with path.open('wb') as file:
            for number, page in enumerate(pages):
                if page.ndim != 2 or page.shape[1] != dims or not len(page):
                    raise ValueError(f'page {number}: expected tokens [T, {dims}] with T > 0, '
                                     f'got {page.shape}')
                blocks = -(-len(page) // config.block)
                padded = np.empty((blocks * config.block, dims), np.float32)
                padded[:len(page)] = page
                padded[len(page):] = padded[len(page) - 1]
                if not np.isfinite(padded).all():
                    raise ValueError(f'page {number}: tokens are not finite')
                file.write(_packed(padded, config).tobytes())
                table.append((0, first, blocks, len(page)))
                first += blocks
        mapped = _MappedBlocks(path, config, dims, folder)
        return cls(config, dims, [mapped], np.array(table, np.int64).reshape(-1, 4))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def unused(self) -> float:
        """Share of the files that no page refers to any more."""
        total = sum(len(file.blocks) for file in self._files)
        return 1 - int(self.table[:, 2].sum()) / total if total else 0.0

    @property
    def files(self) -> int:
        """How many files hold its pages."""
        return len(np.unique(self.table[:, 0]))

    def joined(self, other: 'TokenStore') -> 'TokenStore':
        """Returns a store of this one's pages, then another's."""
        if (self.config, self.dims) != (other.config, other.dims):
            raise ValueError(f'tokens of {other.dims} dimensions, {other.config}, cannot join '
                             f'{self.dims} dimensions, {self.config}')
        table = other.table + np.array([len(self._files), 0, 0, 0])
        return TokenStore(self.config, self.dims, [*self._files, *other._files],
                          np.concatenate([self.table, table]))

    def kept(self, rows: np.ndarray) -> 'TokenStore':
        """Returns the store of some of its pages; their tokens stay where they are."""
        return TokenStore(self.config, self.dims, self._files, self.table[rows])

    def gather(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copies the blocks of pages, one page after the other.

        Args:
          rows: of the pages.
          out: [blocks or more, block, width], cast to: float32 or bfloat16, of `dims`;
            uint8, of `dims` / 8, for binary storage.

        Returns:
          Blocks of each page, int64 [rows].
        """
        counts, position = self.table[rows, 2], 0
        for file, first, count, _ in self.table[rows].tolist():
            out[position:position + count] = self._files[file].blocks[first:first + count]
            position += count
            self._files[file].has_read(count)
        return counts

    def page(self, row: int) -> np.ndarray:
        """Returns a page's tokens [T, dims] float32; of binary storage, -1 or 1 / sqrt(dims)."""
        file, first, count, tokens = self.table[row].tolist()
        blocks = self._files[file].blocks[first:first + count]
        blocks = blocks.reshape(-1, blocks.shape[-1])[:tokens]
        if self.config.storage == 'binary':
            signs = np.unpackbits(blocks, axis=1).astype(np.float32)
            page = (2 * signs - 1) / np.float32(np.sqrt(self.dims))
        else:
            page = blocks.astype(np.float32)
        self._files[file].has_read(count)
        return page

    def compacted(self, scratch: Path | None = None) -> 'TokenStore':
        """Returns the same pages in one file that holds nothing else."""
        pages = (self.page(row) for row in range(len(self)))
        return TokenStore.build(pages, self.dims, self.config, scratch)

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes the store; returns the fields to read it by.

        Files that lie on the same file system are linked, not copied.
        """
        used = np.unique(self.table[:, 0])
        table = self.table.copy()
        table[:, 0] = np.searchsorted(used, table[:, 0])
        for number, file in enumerate(used.tolist()):
            self._files[file].link(folder / _name(number))
        np.save(folder / _TABLE, table, allow_pickle=False)
        return {'dims': self.dims, 'files': len(used), 'config': dataclasses.asdict(self.config)}

    @classmethod
    def from_files(cls, folder: Path, fields: dict[str, Any]) -> 'TokenStore':
        """Maps what `write_files` wrote; raises an ArtifactError if that is something else."""
        try:
            config, dims = TokenConfig(**fields['config']), fields['dims']
            table = np.load(folder / _TABLE, allow_pickle=False)
            files = [_MappedBlocks(folder / _name(i), config, dims) for i in range(fields['files'])]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f'{folder}: tokens: {error!r}') from error
        sizes = np.array([len(file.blocks) for file in files])
        if (table.ndim != 2 or table.shape[1] != 4 or table.min(initial=0) < 0
                or (table[:, 0] >= len(files)).any()
                or (table[:, 1] + table[:, 2] > sizes[table[:, 0]]).any()):
            raise ArtifactError(f'{folder / _TABLE}: names blocks that are not in the files')
        return cls(config, dims, files, table)


class _MappedBlocks:
    """A file of blocks, mapped; it goes with its temporary folder, if it has one."""

    def __init__(self, path: Path, config: TokenConfig, dims: int, folder: Any = None):
        binary = config.storage == 'binary'
        dtype, width = (np.dtype(np.uint8), dims // 8) if binary else (
            np.dtype(ml_dtypes.bfloat16), dims)
        block_bytes = config.block * width * dtype.itemsize
        size = path.stat().st_size
        if size % block_bytes:
            raise ValueError(f'{path.name}: {size} bytes are no blocks of {block_bytes}')
        self._path, self._folder = path, folder
        shape = (size // block_bytes, config.block, width)
        if not size:
            self.blocks = np.zeros(shape, dtype)
        else:
            with path.open('rb') as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.blocks = np.frombuffer(mapped, dtype).reshape(shape)
        self._block_bytes, self._read, self._lock = block_bytes, 0, threading.Lock()

    def has_read(self, blocks: int) -> None:
        """Counts what is read, and lets go of the mapping's pages when it is much.

        The mapping stays valid for readers in other threads: the system maps again what
        they touch.
        """
        with self._lock:
            self._read += blocks * self._block_bytes
            if self._read < _RESIDENT:
                return
            self._read = 0
        let_go(self.blocks)

    def link(self, target: Path) -> None:
        try:
            os.link(self._path, target)
        except OSError:  # Another file system, or a new version has replaced the folder.
            if self._path.is_file():
                shutil.copyfile(self._path, target)
            else:
                with target.open('wb') as file:
                    for start in range(0, len(self.blocks), 4096):
                        file.write(self.blocks[start:start + 4096].tobytes())


def let_go(array: np.ndarray) -> None:
    """Lets go of what has been read of a memory-mapped array, which stays valid."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, 'base', None)
    if base is not None and hasattr(mmap, 'MADV_DONTNEED'):
        base.madvise(mmap.MADV_DONTNEED)


def _name(number: int) -> str:
    return f'tokens-{number:03d}.bin'


def _packed(tokens: np.ndarray, config: TokenConfig) -> np.ndarray:
    if config.storage == 'binary':
        return np.packbits(tokens > 0, axis=1)
    return tokens.astype(ml_dtypes.bfloat16)


def pool_grid(tokens: np.ndarray, rows: int, columns: int, prefix: int, side: int) -> np.ndarray:
    """Averages the tokens of squares of an image's grid.

    Args:
      tokens: [T, D] float32; `prefix` tokens, the image's grid row by row, others.
      rows, columns: of the grid.
      prefix: tokens before the grid.
      side: of a square; squares at the right and lower edge may be smaller.

    Returns:
      The tokens before, one unit vector a square, and the tokens after, float32.

    Raises:
      ValueError: if the grid does not fit into the tokens.
    """
    end = prefix + rows * columns
    if rows < 1 or columns < 1 or end > len(tokens):
        raise ValueError(f'a grid of {rows}x{columns} after {prefix} does not fit into '
                         f'{len(tokens)} tokens')
    grid = tokens[prefix:end].reshape(rows, columns, -1)
    grid = np.add.reduceat(grid, range(0, rows, side), axis=0)
    squares = np.add.reduceat(grid, range(0, columns, side), axis=1).reshape(-1, tokens.shape[1])
    squares /= np.maximum(np.linalg.norm(squares, axis=1, keepdims=True), 1e-12)
    return np.concatenate([tokens[:prefix], squares, tokens[end:]]).astype(np.float32)
