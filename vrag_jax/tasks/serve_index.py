"""Serves the index of a run's pages over HTTP."""

import importlib.util
from pathlib import Path

from vrag_jax.config import ConfigError
from vrag_jax.tasks.corpus import index_directory, open_engine, page_manifest
from vrag_jax.tasks.settings import RunConfig

_PACKAGES = ('fastapi', 'uvicorn', 'prometheus_client')


def check_packages() -> None:
    """Raises a `ConfigError` if the extra `serve` is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"config.task: 'serve_index' needs {', '.join(missing)}; "
                          "pip install 'vrag_jax[serve]'")


def run(config: RunConfig, workdir: Path) -> None:
    """Opens the index in `workdir`, or builds it, and serves it until the process is stopped.

    A manifest of pages or an index that is replaced meanwhile, e.g. by `build_index` in the
    same `workdir`, is taken over without a restart.
    """
    check_packages()
    from vrag_jax.retrieval.engine import SearchEngine
    from vrag_jax.retrieval.pages import PageStore
    from vrag_jax.serving.live import LiveIndex
    from vrag_jax.serving.server import serve

    manifest, directory = page_manifest(config, workdir), index_directory(workdir)
    open_engine(config, PageStore.open(manifest), workdir)  # Builds what is missing.

    def load() -> tuple[PageStore, SearchEngine]:
        store = PageStore.open(manifest)
        return store, SearchEngine.open(directory, store)

    serve(LiveIndex(load, (manifest, directory / 'manifest.json')), config.serving)
