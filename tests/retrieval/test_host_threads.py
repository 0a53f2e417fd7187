"""Work in pieces: in order, in several threads, with BLAS as it was before."""

import threading

import pytest
from threadpoolctl import threadpool_info

from vrag_jax.retrieval import host_threads
from vrag_jax.retrieval.host_threads import in_pieces


def blas_threads():
    return [library['num_threads'] for library in threadpool_info()
            if library['user_api'] == 'blas']


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(host_threads, '_cores', lambda: 2)
    host_threads._pool.cache_clear()
    yield
    host_threads._pool.cache_clear()


def test_pieces_run_at_the_same_time_and_come_back_in_order(two_cores):
    both = threading.Barrier(2, timeout=60)  # Neither passes before the other is there.

    def work(piece):
        both.wait()
        return len(piece), sum(piece), blas_threads()

    before = blas_threads()
    (size, total, blas), (size_2, total_2, _) = in_pieces(work, range(15), 10)
    assert (size, total, size_2, total_2) == (10, 45, 5, 60)
    assert blas and set(blas) == {1}
    assert blas_threads() == before


def test_one_piece_stays_in_the_thread_of_its_caller():
    assert in_pieces(lambda piece: threading.get_ident(), range(10), 10) == [threading.get_ident()]
    assert in_pieces(len, [], 10) == []


def test_an_error_is_that_of_its_piece_and_blas_is_as_before(two_cores):
    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        in_pieces(lambda piece: 1 // piece[0], range(20), 10)
    assert blas_threads() == before
