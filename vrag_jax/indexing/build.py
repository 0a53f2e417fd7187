"""The retrievers that a config names: built over pages, opened again, fused if several."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from vrag_jax.config import naming
from vrag_jax.corpus.artifact import MANIFEST, ArtifactError, making
from vrag_jax.corpus.identity import content_keys
from vrag_jax.corpus.ocr import OcrReader
from vrag_jax.corpus.page_texts import page_texts
from vrag_jax.corpus.pages import PageStore
from vrag_jax.embedders.interface import Embedder, PageContent
from vrag_jax.embedders.registry import load_embedder
from vrag_jax.indexing.embed_corpus import contents, embed_corpus
from vrag_jax.indexing.page_vectors import PageVectors
from vrag_jax.indexing.retrieval_config import RetrievalConfig
from vrag_jax.parallel.processes import is_main
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.fusion import HybridRetriever
from vrag_jax.retrieval.kinds import kind_of
from vrag_jax.retrieval.retriever import Changes, Retriever, RetrieverKind
from vrag_jax.retrieval.stored_index import StoredIndex

_LOG = logging.getLogger(__name__)
_VECTORS = 'vectors'  # Where in a workdir is what embedders have made of the pages.


def index_directory(config: RetrievalConfig, workdir: Path) -> Path:
    """Returns where a run has its index."""
    return Path(config.index_dir) if config.index_dir else workdir / 'index'


def announce(config: RetrievalConfig) -> None:
    """Prints one line that says what searches the pages; of several processes one does."""
    if is_main():
        print(f'search: by {config}', flush=True)


def load_embedders(config: RetrievalConfig, mesh: Mesh | None = None) -> dict[str, Embedder]:
    """Loads the embedders among the config's retrievers, by name."""
    loaded = {}
    for name in config.retrievers:
        if name in config.embedders:
            with naming(f'config.retrieval.{config.embedder_field(name)}'):
                loaded[name] = load_embedder(config.embedders[name], mesh)
    return loaded


def texts_of(config: RetrievalConfig, store: PageStore, embedders: Mapping[str, Embedder],
             workdir: Path) -> list[str]:
    """Returns the texts of the pages, read by OCR where the config says so.

    Where no retriever looks at them, '' stands for those that are not known.
    """
    if set(config.retrievers) <= {name for name, e in embedders.items() if e.reads != 'text'}:
        return [page.text or '' for page in store]
    return page_texts(store, OcrReader(workdir / 'ocr') if config.ocr else None)


def embed_pages(embedders: Mapping[str, Embedder], store: PageStore, texts: Sequence[str],
                workdir: Path) -> None:
    """Embeds what is new of the pages; every process has to call this, and does a share."""
    for name, embedder in embedders.items():
        with tqdm(desc=f'{name}: embedding', unit='page', disable=not is_main()) as bar:
            def show(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            embed_corpus(embedder, store, texts, workdir / _VECTORS / name, progress=show)


def open_engine(config: RetrievalConfig, store: PageStore, workdir: Path,
                embedders: Mapping[str, Embedder] | None = None,
                queries: Sequence[str] = ()) -> SearchEngine:
    """Opens the index of the pages, takes over what has changed of them, or builds it.

    Of an index of the same settings vectors of pages that are still there stay as they are. It
    is built where there is none, it has other settings, is damaged, or fewer than half of the
    pages are in it.

    Args:
      config: which retrievers.
      store: the pages.
      workdir: keeps the index, unless `config.index_dir` names another.
      embedders: those of `load_embedders`, if they are loaded already.
      queries: for which recall is measured where an index is built.

    Raises:
      ValueError: if the index of `config.index_dir` is not of these pages and settings; if
        several processes would have to embed pages, for which there is `build_index`.
    """
    directory = index_directory(config, workdir)
    embedders = load_embedders(config) if embedders is None else embedders
    stored, reason = _stored(config, store, directory, embedders)
    if stored is not None and not reason:
        return SearchEngine(store, stored.retriever)
    if config.index_dir:
        raise ValueError(f'the index {directory} cannot be used: {reason}')
    with making(directory) as scratch:
        # Another run may have built it meanwhile.
        stored, reason = _stored(config, store, directory, embedders)
        if stored is not None and not reason:
            return SearchEngine(store, stored.retriever)
        if stored is not None:
            _LOG.info('the index is updated: %s', reason)
        elif (directory / MANIFEST).exists():
            _LOG.warning('the index is built anew: %s', reason)
        texts = texts_of(config, store, embedders, workdir)
        retriever = _build(config, store, texts, embedders, workdir, scratch, queries, stored)
        engine = SearchEngine(store, retriever)
        stored = None  # So that nobody here reads the version that is replaced.
        engine.save(directory)
    return engine


def _stored(config: RetrievalConfig, store: PageStore, directory: Path,
            embedders: Mapping[str, Embedder]) -> tuple[StoredIndex | None, str]:
    """Returns an index of these settings, and what keeps it from being that of the pages."""
    if not (directory / MANIFEST).exists():
        return None, 'there is none'
    try:
        stored = StoredIndex.read(directory, list(embedders.values()))
    except (ArtifactError, FileNotFoundError) as error:
        return None, str(error)
    if not is_of(stored.retriever, config, embedders):
        return None, 'its retrievers have other settings'
    try:
        stored.check(store)
    except ArtifactError as error:
        return stored, str(error)
    return stored, ''


def _build(config: RetrievalConfig, store: PageStore, texts: Sequence[str],
           embedders: Mapping[str, Embedder], workdir: Path, scratch: Path,
           queries: Sequence[str], stored: StoredIndex | None) -> Retriever:
    """Builds the retrievers, or updates those of a stored index that has most of the pages."""
    parts: list[Retriever] = []
    pages = contents(store, texts)
    row = {page_id: number for number, page_id in enumerate(store.ids)}
    for number, name in enumerate(config.retrievers):
        embedder = embedders.get(name)
        vectors: Sequence[np.ndarray] = () if embedder is None else _vectors(
            embedder, store, texts, workdir / _VECTORS / name)

        def embed(_: Embedder, added: Sequence[PageContent],
                  vectors: Sequence[np.ndarray] = vectors) -> Sequence[np.ndarray]:
            return [vectors[row[page.page_id]] for page in added]

        if stored is not None:
            old = stored.retriever.parts[number]
            changes = stored.changes(store, pages, old.reads, embed, scratch, queries)
            if 2 * len(changes.added) <= len(store):
                parts.append(old.updated(changes))
                continue
        everything = Changes(pages, frozenset(), lambda: pages, store.ids, embed, scratch, queries)
        parts.append(kind_of(config.kind_name(name), embedder).build(everything, config, embedder))
    return parts[0] if len(parts) == 1 else HybridRetriever(parts, config.hybrid)


def _vectors(embedder: Embedder, store: PageStore, texts: Sequence[str], directory: Path
             ) -> PageVectors:
    """Returns the pages' vectors, which one process alone may have to make first."""
    if jax.process_count() == 1:
        return embed_corpus(embedder, store, texts, directory)
    try:
        vectors = PageVectors.open(directory)
    except (ArtifactError, FileNotFoundError) as error:
        raise ValueError(f'the pages are not embedded: {error}; several processes do so in the '
                         'task build_index') from error
    if (vectors.fingerprint, vectors.ids, list(vectors.keys)) != (
            embedder.fingerprint, store.ids, content_keys(embedder.reads, store, texts)):
        raise ValueError(f'{directory}: vectors of other pages; several processes embed pages in '
                         'the task build_index')
    return vectors


def is_of(retriever: Retriever, config: RetrievalConfig, embedders: Mapping[str, Embedder]
          ) -> bool:
    """Whether a retriever is what the config asks for, with its embedders in their places."""
    if isinstance(retriever, HybridRetriever) and retriever.config != config.hybrid:
        return False
    return len(retriever.parts) == len(config.retrievers) and all(
        isinstance(part, RetrieverKind)
        and part.name == kind_of(config.kind_name(name), embedders.get(name)).name
        and part.matches(config, embedders.get(name))
        for part, name in zip(retriever.parts, config.retrievers, strict=True))
