"""The memory that benchmarks measure: what is allocated, what is mapped, what went before."""

import mmap
from pathlib import Path

import pytest

from benchmarks import loading
from benchmarks.memory import Peak

MB = 10**6

needs_proc = pytest.mark.skipif(
    not Path('/proc/self/clear_refs').exists(), reason='needs the /proc of Linux')


def take_and_give_back(size):
    """Not by `malloc`, which may keep what is freed (`make test` tells it to)."""
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1


@needs_proc
def test_memory_that_has_been_freed_again_is_in_the_peak():
    take_and_give_back(200 * MB)  # Before: not in the peak.
    with Peak() as peak:
        take_and_give_back(80 * MB)
    assert 78 * MB < peak.rss - peak.before['rss'] < 120 * MB


@needs_proc
def test_pages_of_mapped_files_are_told_apart(tmp_path):
    (tmp_path / 'file').write_bytes(bytes(64 * MB))
    with (tmp_path / 'file').open('rb') as file, Peak() as peak:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert sum(mapped[:: mmap.PAGESIZE]) == 0  # Touches every page.
    grown = peak.grown()
    assert grown['file'] > 0.06
    assert grown['rss'] > 0.06
    assert grown['anon'] < 0.03


def test_more_than_the_weights_and_two_shards_is_refused():
    grown = {'rss': 3.9, 'anon': 3.8, 'file': 0.5}
    found = loading.within(grown, held_gb=2.0, shard_gb=1.0)
    assert found == {'weights_held_gb': 2.0, 'bound_gb': 4.0,
                     'beside_weights_gb': {'rss': 1.9, 'anon': 1.8, 'file': 0.5}}
    with pytest.raises(RuntimeError, match='took 3.90 GB'):
        loading.within(grown, held_gb=1.8, shard_gb=1.0)
