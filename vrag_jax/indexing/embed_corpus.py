"""Embeds a corpus: over processes, a shard of pages at a time, to be resumed at any point."""

import functools
import hashlib
import logging
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError, remove_replaced
from vrag_jax.corpus.identity import content_keys
from vrag_jax.corpus.pages import PageStore
from vrag_jax.embedders.interface import Embedder, PageContent
from vrag_jax.indexing.page_vectors import DTYPES, PageVectors, write_page_vectors
from vrag_jax.parallel.distributed import is_main
from vrag_jax.parallel.processes import exchange, share
from vrag_jax.retrieval.vector_checks import SharedVectors, digest_of, tell_groups

_LOG = logging.getLogger(__name__)
_SHARDS = 'shards'
_AHEAD = 2  # Shards at work: the pages of one are loaded while the device runs the other's.
_UNIT_TOLERANCE = 1e-2  # bfloat16 keeps a row's norm to about 0.4 %.


class EmbeddingError(ValueError):
    """Vectors that cannot be right; the message names the pages."""


def embed_corpus(
    embedder: Embedder, store: PageStore, texts: Sequence[str], directory: Path, *,
    shard_pages: int = 64, dtype: str = '',
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PageVectors:
    """Embeds all pages of a store, except those that have been embedded before.

    Of several processes all must call this at the same time, on a directory that they share:
    shards of pages are dealt out to them, and each runs its own on its own devices. A shard
    is written when it is done, so that a run that is killed goes on where it was; pages
    whose content has not changed since the last run are taken from its vectors.

    Args:
      embedder: of this process.
      store: the pages.
      texts: their texts, in the store's order.
      directory: of the vectors, and of the shards while it goes on.
      shard_pages: pages of a shard.
      dtype: of the rows on disk; '' is bfloat16 for vectors of tokens, float32 otherwise.
      progress: is called after each shard with the numbers of pages that this process has embedded,
        and has to embed.

    Returns:
      The vectors of all pages, in the store's order, memory-mapped.

    Raises:
      ValueError: if there is no page, or not one text a page; if more than half of the pages
        that differ have the vectors of another one. Fewer are a warning that names them.
      EmbeddingError: for NaN, zeros or wrong dimensions.
    """
    if len(texts) != len(store) or not len(store):
        raise ValueError(f'{len(texts)} texts for {len(store)} pages')
    dtype = dtype or ('bfloat16' if embedder.multi_vector else 'float32')
    directory = Path(directory)
    _bring_up_to_date(embedder, store, texts, directory, dtype, shard_pages, progress)
    if is_main():
        remove_replaced(directory)  # Until here it was read.
    return PageVectors.open(directory)


def _bring_up_to_date(
    embedder: Embedder, store: PageStore, texts: Sequence[str], directory: Path, dtype: str,
    shard_pages: int, progress: Callable[[int, int], None],
) -> None:
    """Makes the vectors in a directory those of the pages."""
    pages = contents(store, texts)
    keys = content_keys(embedder.reads, store, texts)
    first = {key: page for page, key in reversed(list(zip(pages, keys, strict=True)))}
    last = _last(directory, embedder, dtype)
    known = set(last.keys) if last is not None else set()
    missing = [key for key in dict.fromkeys(keys) if key not in known]
    groups = [missing[at : at + shard_pages] for at in range(0, len(missing), shard_pages)]
    files = [_shard_file(directory, embedder, dtype, group) for group in groups]
    mine = [n for n in share(groups) if _read_shard(files[n], groups[n]) is None]
    _agree(lambda: _embed_shards(
        embedder, [[first[key] for key in groups[n]] for n in mine], [groups[n] for n in mine],
        [files[n] for n in mine], dtype, progress))
    # Every shard is on disk now. One process joins them; the others wait for its word.
    vectors = _Vectors(last, dict(zip(files, groups, strict=True)))
    _agree(lambda: _join(embedder, store.ids, keys, first, vectors, last, directory, dtype)
           if is_main() else None)


def contents(store: PageStore, texts: Sequence[str]) -> list[PageContent]:
    """Returns what embedders may look at of each page; images are loaded when asked for."""
    return [PageContent(page.page_id, text, functools.partial(store.image, page.page_id),
                        (page.width, page.height))
            for page, text in zip(store, texts, strict=True)]


def check_page_vectors(embedder: Embedder, page: PageContent, vectors: np.ndarray) -> None:
    """Raises an `EmbeddingError` unless these are `[T, dims]` unit rows, T = 1 if single."""
    if vectors.ndim != 2 or vectors.shape[1] != embedder.dims or not len(vectors) or (
            len(vectors) > 1 and not embedder.multi_vector):
        expected = 'T' if embedder.multi_vector else '1'
        raise EmbeddingError(f'page {page.page_id!r}: vectors of shape {vectors.shape}, expected '
                             f'({expected}, {embedder.dims})')
    if not np.isfinite(vectors).all():
        raise EmbeddingError(f'page {page.page_id!r}: NaN or infinity in its vectors')
    norms = np.linalg.norm(vectors, axis=1)
    if abs(norms - 1).max() > _UNIT_TOLERANCE:
        worst = norms[abs(norms - 1).argmax()]
        raise EmbeddingError(f'page {page.page_id!r}: a vector of length {worst:.3g}, expected 1')


class _Vectors:
    """Vectors by key: of the last run, or in a shard, of which one is in memory."""

    def __init__(self, last: PageVectors | None, shards: Mapping[Path, Sequence[str]]):
        self._last = last
        self._places = {} if last is None else last.places()
        self._shards = shards
        self._file_of = {key: file for file, keys in shards.items() for key in keys}
        self._open: tuple[Path | None, Mapping[str, np.ndarray]] = None, {}

    def __getitem__(self, key: str) -> np.ndarray:
        if self._last is not None and key in self._places:
            file_number, first, count = self._places[key]
            return self._last.files[file_number][first : first + count]
        file = self._file_of[key]
        if self._open[0] != file:
            read = _read_shard(file, self._shards[file])
            if read is None:
                raise ArtifactError(f'{file}: written by another process, but not here: all '
                                    'processes must share the directory')
            self._open = file, read
        return self._open[1][key]


def _embed_shards(
    embedder: Embedder, shards: Sequence[Sequence[PageContent]],
    keys: Sequence[Sequence[str]], files: Sequence[Path], dtype: str,
    progress: Callable[[int, int], None],
) -> None:
    """Embeds, checks and writes shards."""
    total, done = sum(map(len, shards)), 0
    for shard, vectors, own, file in zip(
            shards, _run_ahead(embedder, shards), keys, files, strict=True):
        for page, rows in zip(shard, vectors, strict=True):
            check_page_vectors(embedder, page, rows)
        _write_shard(file, own, vectors, dtype)
        done += len(shard)
        progress(done, total)


def _run_ahead(embedder: Embedder, shards: Sequence[Sequence[PageContent]]
               ) -> Iterator[list[np.ndarray]]:
    """Yields the vectors of each shard in order, while the next are being worked on."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        running: deque[Future[list[np.ndarray]]] = deque()
        for shard in shards:
            running.append(pool.submit(embedder.embed_pages, shard))
            if len(running) == _AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _join(
    embedder: Embedder, ids: tuple[str, ...], keys: Sequence[str],
    first: Mapping[str, PageContent], vectors: _Vectors, last: PageVectors | None,
    directory: Path, dtype: str,
) -> None:
    """Writes what is new of the vectors, a page at a time, and removes the shards.

    `first` is the first page of each key.
    """
    if last is None or (last.ids, last.keys) != (ids, tuple(keys)):
        digests = {} if last is None else dict(zip(last.keys, last.digests, strict=True))
        shared, new = SharedVectors(len(set(keys))), set()
        for key in dict.fromkeys(keys):
            page = first[key]
            shared.add(page.page_id, digests.get(key) or digest_of(vectors[key]),
                       functools.partial(embedder.input_digest, page))
            if key not in digests:
                new.add(page.page_id)
        # Of those of the last run it was said then.
        groups = [group for group in shared.groups() if not new.isdisjoint(group)]
        if groups:
            _LOG.warning('these pages differ, but %s has the same vectors for them: %s',
                         embedder.kind, tell_groups(groups))
        write_page_vectors(directory, ids, keys, vectors.__getitem__, embedder.dims,
                           embedder.fingerprint, dtype, last)
    shutil.rmtree(directory / _SHARDS, ignore_errors=True)


def _last(directory: Path, embedder: Embedder, dtype: str) -> PageVectors | None:
    """Vectors of the last run, if they are of this embedder."""
    try:
        last = PageVectors.open(directory)
    except FileNotFoundError:
        return None
    except ArtifactError as error:
        _LOG.warning('pages are embedded anew: %s', error)
        return None
    same = last.fingerprint == embedder.fingerprint and last.dtype == DTYPES[dtype]
    return last if same else None


def _shard_file(directory: Path, embedder: Embedder, dtype: str, keys: Sequence[str]) -> Path:
    """Where a shard is kept: its name says what is in it."""
    digest = hashlib.sha256('\n'.join([embedder.fingerprint, dtype, *keys]).encode()).hexdigest()
    return directory / _SHARDS / f'{digest}.npz'


def _write_shard(file: Path, keys: Sequence[str], vectors: Sequence[np.ndarray], dtype: str
                 ) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix('.partial')
    rows = np.concatenate(vectors).astype(DTYPES[dtype])
    with partial.open('wb') as opened:
        # NumPy's format has no name for bfloat16: its bytes are kept.
        np.savez(opened, keys=np.array(keys), counts=[len(v) for v in vectors],
                 rows=rows.view(np.uint8), dtype=np.array(dtype))
    partial.replace(file)


def _read_shard(file: Path, keys: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Vectors of a shard by key; None if it is not there, or not whole."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:  # Checks each array's CRC.
            counts, found = stored['counts'], stored['keys'].tolist()
            rows = stored['rows'].view(DTYPES[str(stored['dtype'])])
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        _LOG.warning('%s is embedded anew: %s', file, error)
        return None
    if found != list(keys) or counts.sum() != len(rows):
        _LOG.warning('%s is embedded anew: it holds other pages than its name says', file)
        return None
    return dict(zip(keys, np.split(rows, np.cumsum(counts)[:-1]), strict=True))


def _agree(work: Callable[[], None]) -> None:
    """Does work in every process; if it fails in one, it does in all, and says where."""
    error: Exception | None = None
    try:
        work()
    except Exception as caught:
        error = caught
    messages = exchange(None if error is None else f'{type(error).__name__}: {error}')
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message is not None:
            raise EmbeddingError(f'process {process}: {message}')
