"""Searching by the service is searching in this process."""

import concurrent.futures

import pytest

from tests.serving.conftest import PAGES, running
from vrag_jax.retrieval.remote import RemoteSearch, RemoteSearchConfig, SearchServiceError
from vrag_jax.serving.service_config import ServiceLimits


@pytest.fixture
def remote(service, live):
    client = RemoteSearch(service, live.current.store)
    yield client
    client.close()


def test_the_hits_are_the_engines_to_the_last_bit(remote, live):
    queries = [page[3] for page in PAGES] + ['zzqqzz', '', 'Umsatz – "Reise" \\ 数据\n']
    engine = live.current.engine
    assert remote.check() == len(PAGES)
    for k in (1, 4, 100):
        assert remote.search(queries, k) == engine.search(queries, k)


def test_so_are_filtered_hits(remote, live):
    for filters in ({'document': 'report'}, {'year': [2019, 2020]}, {'page': 2, 'kind': 'slide'}):
        found = remote.search(['revenue travel'], 5, filters)
        assert found == live.current.engine.search(['revenue travel'], 5, filters)


def test_threads_share_a_client(remote, live):
    queries = [f'{page[3]} {n}' for n in range(4) for page in PAGES]
    expected = live.current.engine.search(queries, 3)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda query: remote.search([query], 3)[0], queries))
    assert found == expected


def test_a_batch_of_long_queries_is_searched(remote, live):
    queries = [f'revenue {n} ' + 'travel ' * 1000 for n in range(160)]
    assert remote.search(queries, 2) == live.current.engine.search(queries, 2)


def test_a_batch_is_split_into_what_the_service_allows(live):
    queries = [page[3] for page in PAGES]
    with running(live, limits=ServiceLimits(hits=40, queries=7)) as (url, _):
        client = RemoteSearch(url, live.current.store)
        with pytest.raises(SearchServiceError, match='queries: 17 are too many; 7 are allowed'):
            client.search(queries, 2)
        with pytest.raises(SearchServiceError, match='k: 7 queries x 10 hits are 70; 40 are allo'):
            client.search(queries[:7], 10)
        client.check()
        for k in (2, 10, 40):
            assert client.search(queries, k) == live.current.engine.search(queries, k)
        with pytest.raises(SearchServiceError, match='k: 1 queries x 41 hits are 41; 40 are allo'):
            client.search(queries, 41)
        client.close()


def test_a_refusal_names_service_and_field(live):
    with running(live, limits=ServiceLimits(k=5)) as (url, _):
        client = RemoteSearch(url, live.current.store)
        with pytest.raises(SearchServiceError, match=rf'{url}: .*k: must be in \[1, 5\]'):
            client.search(['a'], 6)
        client.close()


def test_a_service_of_other_pages_is_noticed(service):
    client = RemoteSearch(service, {'a', 'b'}, RemoteSearchConfig(attempts=1))
    with pytest.raises(SearchServiceError, match='not among the pages of this run'):
        client.search(['revenue'], 1)
    client.close()
