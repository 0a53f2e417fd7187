"""Tests run on eight simulated CPU devices and share what they compile."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# All of this is read when jax is imported, so it is set before any test module is.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8')
# The environment, not jax.config: runs that tests start as processes share the cache.
_COMPILED = tempfile.mkdtemp(prefix='vrag_jax_compiled_')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _COMPILED
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'


def pytest_unconfigure() -> None:
    """Removes the compile cache of this session."""
    shutil.rmtree(_COMPILED, ignore_errors=True)


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    """Folder of the shared real pages and example files; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / 'shared'
    folder = Path(os.environ.get('VRAG_SHARED', beside))
    if not folder.is_dir():
        pytest.skip(f'needs the shared data: {folder} is not there (set VRAG_SHARED)')
    return folder
