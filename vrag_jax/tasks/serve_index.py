"""Serves the index of a run's pages over HTTP."""

import importlib.util
import logging
from pathlib import Path

from vrag_jax.config import ConfigError
from vrag_jax.retrieval.artifact import MANIFEST, ArtifactError
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.pages import PageStore
from vrag_jax.tasks.corpus import index_directory, open_engine, page_manifest, read_engine
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

    manifest = page_manifest(config, workdir)

    def load() -> tuple[PageStore, SearchEngine]:
        store = PageStore.open(manifest)
        return store, read_engine(store, workdir)

    watched = manifest, index_directory(workdir) / MANIFEST
    try:
        live = LiveIndex(load, watched)
    except (ArtifactError, FileNotFoundError) as error:
        _LOG.warning('the index is built: %s', error)
        open_engine(config, PageStore.open(manifest), workdir)
        live = LiveIndex(load, watched)
    serve(live, config.serving)
