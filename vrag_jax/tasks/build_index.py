"""Documents in, searchable pages out: ingestion, embeddings, index, and a report."""

import dataclasses
import time
from pathlib import Path

from vrag_jax.config import ConfigError
from vrag_jax.corpus.ingestion.directories import MANIFEST
from vrag_jax.corpus.ingestion.ingest import ingest, remove_unused
from vrag_jax.corpus.ocr import missing_extra
from vrag_jax.corpus.pages import PageStore
from vrag_jax.indexing.build import announce, embed_pages, load_embedders, texts_of
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.parallel.processes import barrier, is_main, local_mesh, main_first
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.run.context import RunContext
from vrag_jax.run.corpus import build_corpus, page_manifest, report_retrieval
from vrag_jax.run.run_config import RunConfig
from vrag_jax.run.task import Task

PAGES = 'pages'  # Where in its workdir the task keeps the pages.


def run(context: RunContext) -> None:
    """Ingests `retrieval.sources`, if there are any, and indexes the pages.

    Without sources the pages are those of `config.data`. With questions in `config.data` the
    quality of the search is printed too. Of several processes one ingests and indexes; all
    embed.
    """
    config, workdir = context.config, context.workdir
    announce(config.retrieval)
    if config.retrieval.sources:
        config = _ingest(config, workdir / PAGES)
    started = time.monotonic()
    try:
        mesh = local_mesh(make_mesh(config.mesh.sizes()))
        embedders = load_embedders(config.retrieval, mesh)
        if embedders:
            store = main_first(
                'pages', lambda: PageStore.open(page_manifest(config, workdir)))
            texts = main_first('texts', lambda: texts_of(
                config.retrieval, store, embedders, workdir))
            embed_pages(embedders, store, texts, workdir)
        corpus = main_first('index', lambda: build_corpus(config, workdir, embedders))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f'index: {error}') from error
    assert isinstance(corpus.engine, SearchEngine)  # `check` has seen to it.
    if is_main():
        for line in corpus.engine.retriever.describe():
            print(f'index: {line}', flush=True)
        print(f'indexed in {time.monotonic() - started:.1f} s', flush=True)
        report_retrieval(corpus)
    barrier('indexed')  # Until here, others may read the pages of before.
    if config.retrieval.sources and is_main():
        try:
            remove_unused(workdir / PAGES)
        except RuntimeError as error:  # Another ingestion: it does so at its end.
            print(f'index: pages of before are not removed: {error}', flush=True)


def _ingest(config: RunConfig, directory: Path) -> RunConfig:
    """Ingests the sources; returns the config whose pages are those of the directory."""
    settings = config.retrieval.ingestion
    if is_main():
        try:
            if config.retrieval.ocr and (missing := missing_extra()):
                raise ImportError(missing)
            report = ingest([Path(s) for s in config.retrieval.source_paths], directory, settings,
                            keep_unused=True)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            raise SystemExit(f'ingestion: {error}') from error
        print(report, flush=True)
    barrier('ingested')
    data = dataclasses.replace(config.data, source='files', manifest=str(directory / MANIFEST))
    return dataclasses.replace(config, data=data)


def needs(config: RunConfig) -> tuple[str, ...]:
    """The pages, unless they are made of documents."""
    return () if config.retrieval.sources else ('data.manifest',)


def check(config: RunConfig) -> None:
    if config.retrieval.url:
        raise ConfigError('config.retrieval.url: build_index has its own index; leave it empty')
    if config.retrieval.index_dir:
        raise ConfigError('config.retrieval.index_dir: build_index writes WORKDIR/index; '
                          'leave it empty')


TASK = Task(run, check=check, needs=needs, policy=False)
