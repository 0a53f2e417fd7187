"""Tests run on eight simulated CPU devices and share what they compile."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Fixtures that tests of several rooms use.
pytest_plugins = ('tests.corpus.documents', 'tests.corpus.page_stores')

# All of this is read when jax is imported, so it is set before any test module is. Of several
# processes that share the tests the first alone sets it, and the others inherit it.
_OWN_CACHE = ''
if 'PYTEST_XDIST_WORKER' not in os.environ:
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ['XLA_FLAGS'] = (
        os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8')
    # The environment, not jax.config: runs that tests start as processes share the cache.
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        _OWN_CACHE = tempfile.mkdtemp(prefix='vrag_jax_compiled_')
        os.environ['JAX_COMPILATION_CACHE_DIR'] = _OWN_CACHE
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'


def pytest_unconfigure() -> None:
    """Removes the compile cache that this session has made."""
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs come first: the small tests at the end are shared out evenly."""
    items.sort(key=lambda item: not item.nodeid.startswith('tests/tasks/'))


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    """Folder of the shared real pages and example files; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / 'shared'
    folder = Path(os.environ.get('VRAG_SHARED', beside))
    if not folder.is_dir():
        pytest.skip(f'needs the shared data: {folder} is not there (set VRAG_SHARED)')
    return folder


@pytest.fixture(scope='session')
def without_scann(tmp_path_factory) -> dict[str, str]:
    """Environment variables of a process that has no ScaNN, wherever it is installed.

    A module of its name that cannot be imported is before it on the path.
    """
    folder = tmp_path_factory.mktemp('without_scann')
    (folder / 'scann.py').write_text(
        """raise ModuleNotFoundError("No module named 'scann'", name='scann')\n""")
    path = os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[1])])
    return {**os.environ, 'PYTHONPATH': path}
