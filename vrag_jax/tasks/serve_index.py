"""Serves the index of a run's pages over HTTP."""

import importlib.util
import logging
from pathlib import Path

from vrag_jax.config import ConfigError
from vrag_jax.retrieval.artifact import MANIFEST, ArtifactError
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.pages import PageStore
from vrag_jax.tasks.corpus import page_manifest
from vrag_jax.tasks.retrievers import index_directory, load_embedders, open_engine
from vrag_jax.tasks.settings import RunConfig

_LOG = logging.getLogger(__name__)
_PACKAGES = ('fastapi', 'uvicorn', 'prometheus_client')


def check_packages() -> None:
    """Raises a `ConfigError` if the extra `serve` is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"config.task: 'serve_index' needs {', '.join(missing)}; "
                          "pip install 'vrag_jax[serve]'")


def run(config: RunConfig, workdir: Path) -> None:
    """Serves the index in `workdir` until the process is stopped.

    It is built if it is not there, or of other pages. A manifest of pages or an index that is
    replaced meanwhile, e.g. by `build_index` in the same `workdir`, is taken over without a
    restart.
    """
    check_packages()
    from vrag_jax.serving.live import LiveIndex
    from vrag_jax.serving.server import serve

    manifest, directory = page_manifest(config, workdir), index_directory(config.retrieval, workdir)
    embedders = load_embedders(config.retrieval)

    def load() -> tuple[PageStore, SearchEngine]:
        store = PageStore.open(manifest)
        return store, SearchEngine.open(directory, store, list(embedders.values()))

    watched = manifest, directory / MANIFEST
    try:
        live = LiveIndex(load, watched)
    except (ArtifactError, FileNotFoundError) as error:
        _LOG.warning('the index is built: %s', error)
        open_engine(config.retrieval, PageStore.open(manifest), workdir, embedders)
        live = LiveIndex(load, watched)
    serve(live, config.serving)
