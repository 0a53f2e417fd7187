"""The load of the service's benchmark: what it asks, what it counts."""

import asyncio
import types

import pytest

pytest.importorskip('fastapi', reason="needs the extra 'serve'")

from benchmarks.search_service import K, ask, difference, milliseconds, mixed_queries  # noqa: E402
from tests.serving.conftest import live_index, running, write_corpus  # noqa: E402

QUESTIONS = ['What is the revenue of travel?', 'Which hotels are in Asia?', '网络 降价 多少']


@pytest.fixture(scope='module')
def live(tmp_path_factory):
    pages = [(f'p/{n}', 'doc', n + 1, f'page {n} of hotels and revenue in Asia', {})
             for n in range(20)]
    return live_index(write_corpus(tmp_path_factory.mktemp('load'), pages))


def test_queries_are_all_different_and_the_same_every_time():
    queries = mixed_queries([f'question {n} about {n * n}?' for n in range(40)], 500, seed=1)
    assert len(set(queries)) == 500
    assert queries == mixed_queries([f'question {n} about {n * n}?' for n in range(40)], 500, 1)


@pytest.mark.parametrize('clients,batch', [(1, 1), (8, 1), (4, 7)])
def test_every_query_is_asked_once_and_its_hits_are_kept(live, clients, batch):
    queries = [f'{question} {n}' for n in range(10) for question in QUESTIONS]
    with running(live) as (url, _):
        load = asyncio.run(ask(int(url.rpartition(':')[2]), queries, clients, batch))
    expected = [[(hit.page_id, hit.score) for hit in hits]
                for hits in live.current.engine.search(queries, K)]
    assert load.errors == 0 and len(load.latencies) == -(-len(queries) // batch)
    other, largest = difference(load.results, expected)
    assert other == 0 and largest < 1e-6 and any(load.results)


def test_errors_are_counted(live):
    def find(*_):
        raise RuntimeError

    broken = types.SimpleNamespace(
        current=types.SimpleNamespace(store=live.current.store, name='broken',
                                      engine=types.SimpleNamespace(find=find)),
        reloads=0, failures=0)
    with running(broken) as (url, _):
        load = asyncio.run(ask(int(url.rpartition(':')[2]), QUESTIONS, 2, 1))
    assert load.errors == 3 and load.results == [[], [], []]


def test_other_pages_and_other_scores_are_told_apart():
    one = [[('a', 1.0), ('b', 0.5)], [('c', 1.0)], []]
    assert difference(one, one) == (0, 0.0)
    assert difference([[('a', 1.0), ('b', 0.75)], [('d', 1.0)], []], one) == (1, 0.25)
    assert difference([[], [], [('a', 1.0)]], one)[0] == 3


def test_percentiles_are_in_milliseconds():
    assert milliseconds([n / 1000 for n in range(1, 102)]) == {
        'p50_ms': 51.0, 'p99_ms': 100.0, 'max_ms': 101.0}
