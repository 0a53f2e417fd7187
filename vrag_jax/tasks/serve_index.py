"""Serves the index of a run's pages over HTTP."""

import logging
from pathlib import Path

from vrag_jax.config import ConfigError
from vrag_jax.corpus.artifact import MANIFEST, ArtifactError
from vrag_jax.corpus.pages import PageStore
from vrag_jax.indexing.build import (
    announce,
    index_directory,
    is_of,
    load_embedders,
    open_engine,
)
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.run.context import RunContext
from vrag_jax.run.corpus import page_manifest
from vrag_jax.run.run_config import RunConfig
from vrag_jax.run.task import Task
from vrag_jax.serving.service_config import check_packages

_LOG = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Refuses the index of another service, and a machine without the extra `serve`."""
    if config.retrieval.url:
        raise ConfigError('config.retrieval.url: serve_index has its own index; leave it empty')
    check_packages()


def run(context: RunContext) -> None:
    """Serves the index in `workdir` until the process is stopped.

    It is built if there is none. One that cannot be served (of other pages or settings, or
    damaged) ends the command and stays as it is. A manifest of pages or an index that is replaced
    meanwhile, e.g. by `build_index` in the same `workdir`, is taken over without a restart.
    """
    try:
        _serve(context.config, context.workdir)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f'serve: {error}') from error


def _serve(config: RunConfig, workdir: Path) -> None:
    from vrag_jax.serving.live import LiveIndex
    from vrag_jax.serving.server import serve
    from vrag_jax.serving.warm_up import warm_up

    manifest, directory = page_manifest(config, workdir), index_directory(config.retrieval, workdir)
    announce(config.retrieval)
    embedders = load_embedders(config.retrieval)

    def load() -> tuple[PageStore, SearchEngine]:
        store = PageStore.open(manifest, config.serving.image_cache_bytes)
        engine = SearchEngine.open(directory, store, list(embedders.values()),
                                   config.serving.cache_bytes)
        if not is_of(engine.retriever, config.retrieval, embedders):
            raise ValueError(
                f'{directory}: the retrievers of this index have other settings than '
                'config.retrieval; serve it with those that it was built with')
        engine.retriever.search(['warm up'], config.serving.get_results)  # Reads what is mapped.
        return store, engine

    if not (directory / MANIFEST).exists():
        _LOG.warning('the index is built: there is none in %s', directory)
        open_engine(config.retrieval, PageStore.open(manifest), workdir, embedders)
    try:
        live = LiveIndex(load, (manifest, directory / MANIFEST), config.serving.keep_seconds)
    except ArtifactError as error:
        raise ValueError(f'{error}; serve this index with the pages and the config.retrieval that '
                         'it was built with, or take over what has changed by the task '
                         'build_index in this workdir') from error
    if config.serving.warm_up.seconds:
        print(warm_up(live.current.engine.retriever, config.serving.get_results,
                      config.serving.warm_up), flush=True)
    serve(live, config.serving)


TASK = Task(run, check=check, mesh=False, policy=False)
