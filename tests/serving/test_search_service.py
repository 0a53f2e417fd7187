"""Search over HTTP: the reference's GET, our POST, limits, load, metrics."""

import concurrent.futures
import json
import socket
import threading
import time
import types
import urllib.parse
import urllib.request

import httpx
import pytest
from PIL import Image

from tests.serving.conftest import PAGES, live_index, running
from vrag_jax.serving.service_config import ServiceLimits


def ids(hits):
    return [hit.page_id for hit in hits]


def fault(response):
    """Status and named field of an error, which must say something, too."""
    answer = response.json()
    assert set(answer) == {'error', 'field'} and answer['error']
    return response.status_code, answer['field']


def wait_for(condition):
    """Waits until something is so."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- The reference's contract: GET, a list of lists of {idx, image_file}


def test_get_answers_as_the_reference_does(service, live):
    # As its rollout asks: one parameter a query, nothing else.
    queries = ['revenue of hotels', '数据中心', 'travel & figure=1']
    response = httpx.get(f'{service}/search', params={'queries': queries})
    assert response.status_code == 200
    answer = response.json()
    assert isinstance(answer, list) and len(answer) == 3
    expected = live.current.engine.search(queries, 10)
    for hits, found in zip(answer, expected, strict=True):
        assert [set(hit) for hit in hits] == [{'idx', 'image_file'}] * 10
        assert [hit['idx'] for hit in hits] == list(range(10))
        files = [str(live.current.store.path(page_id)) for page_id in ids(found)]
        assert files and [hit['image_file'] for hit in hits][:len(files)] == files


def test_its_clients_open_the_file_that_is_named_first(service):
    answer = httpx.get(f'{service}/search', params={'queries': ['网络 降价']}).json()
    paths = [result['image_file'] for result in answer[0]]
    with Image.open(paths[0]) as image:
        assert image.getpixel((7, 9)) == (7, 9, 3)  # the fourth page


def test_image_files_are_named_as_the_clients_see_them(live):
    with running(live, image_root='./search_engine/corpus/', get_results=1) as (url, _):
        [[hit]] = httpx.get(f'{url}/search', params={'queries': '网络 降价'}).json()
    assert hit == {'idx': 0, 'image_file': './search_engine/corpus/img/3.png'}


def test_a_hundred_long_queries_fit_in_the_url(service):
    queries = [f'{n} ' + '数据中心网络' * 20 for n in range(100)]
    url = f'{service}/search?' + urllib.parse.urlencode({'queries': queries}, doseq=True)
    assert len(url) > 100_000
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.status == 200 and len(json.load(response)) == 100


def test_get_always_gives_as_many_pages_as_the_reference(service, live):
    # Its clients take the first without looking whether there is one.
    assert live.current.engine.search(['zzqqzz'], 10) == [[]]
    [hits] = httpx.get(f'{service}/search', params={'queries': 'zzqqzz'}).json()
    files = [hit['image_file'] for hit in hits]
    assert len(files) == len(set(files)) == 10


def test_a_small_corpus_gives_all_it_has(make_corpus):
    with running(live_index(make_corpus(pages=PAGES[:4]))) as (url, _):
        [hits] = httpx.get(f'{url}/search', params={'queries': '网络'}).json()
    assert len({hit['image_file'] for hit in hits}) == 4
    assert hits[0]['image_file'].endswith('img/3.png')


# ---- POST


def test_post_gives_the_engines_hits(client, live):
    queries = ['revenue of hotels', 'zzqqzz', '数据中心', 'revenue of hotels']
    answer = client.post('/search', json={'queries': queries, 'k': 3}).json()
    expected = live.current.engine.search(queries, 3)
    found = [[(hit['page_id'], hit['score']) for hit in hits] for hits in answer['results']]
    assert found == [[(hit.page_id, hit.score) for hit in hits] for hits in expected]
    assert [len(hits) for hits in found] == [3, 0, 1, 3]
    best = answer['results'][2][0]
    assert (best['page_id'], best['document'], best['page']) == ('云/网络 1', '云', 1)


@pytest.mark.parametrize('filters,allowed', [
    ({'document': 'report'}, {'report_1', 'report_2'}),
    ({'year': 2020}, {'report_2', 'annual/2020/3'}),
    ({'year': [2019, 2020], 'kind': 'slide'}, {'report_1', 'report_2'}),
    ({'document': '云', 'page': 1}, {'云/网络 1'}),
    ({'document': 'none of these'}, set()),
])
def test_post_filters_by_document_page_and_own_fields(client, filters, allowed):
    body = {'queries': ['revenue travel hotels 网络'], 'k': 10, 'filters': filters}
    [hits] = client.post('/search', json=body).json()['results']
    assert {hit['page_id'] for hit in hits} == allowed


@pytest.mark.parametrize('body,status,field', [
    (b'{"queries": [', 400, 'body'),
    (b'[]', 422, 'body'),
    (b'{}', 422, 'queries'),
    (b'{"queries": []}', 422, 'queries'),
    (b'{"queries": "revenue"}', 422, 'queries'),
    (b'{"queries": ["a", 7]}', 422, 'queries.1'),
    (b'{"queries": ["a"], "k": 0}', 422, 'k'),
    (b'{"queries": ["a"], "k": 1001}', 422, 'k'),
    (b'{"queries": ["a"], "k": "5"}', 422, 'k'),
    (b'{"queries": ["a"], "topk": 5}', 422, 'topk'),
    (b'{"queries": ["a"], "filters": ["document"]}', 422, 'filters'),
    (b'{"queries": ["a"], "filters": {"years": 2020}}', 422, 'filters'),
    (json.dumps({'queries': ['a'] * 1025}).encode(), 422, 'queries'),
    (json.dumps({'queries': ['a', 'b' * 8193]}).encode(), 422, 'queries.1'),
    (json.dumps({'queries': ['a'], 'filters': {'page': [1] * 1001}}).encode(), 422, 'filters'),
    (b'{"queries": ["' + b'a' * (1 << 20) + b'"]}', 413, 'body'),
])
def test_what_is_wrong_with_a_search_is_named(client, body, status, field):
    assert fault(client.post('/search', content=body)) == (status, field)
    assert client.get('/healthz').json()['status'] == 'ok'


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(client):
    sent = []

    def parts():
        for _ in range(10_000):
            sent.append(1)
            yield b' ' * 65_536

    try:
        assert fault(client.post('/search', content=parts())) == (413, 'body')
    except httpx.TransportError:
        pass  # The connection was closed while the rest was on its way.
    assert len(sent) < 1000


def test_a_body_that_does_not_come_is_given_up(live):
    def parts():
        yield b'{"queries"'
        time.sleep(1.0)
        yield b': ["a"]}'

    with running(live, limits=ServiceLimits(body_seconds=0.2)) as (url, _):
        assert fault(httpx.post(f'{url}/search', content=parts())) == (408, 'body')


def test_a_client_that_goes_away_is_no_failure(live):
    with running(live) as (url, _), httpx.Client(base_url=url, timeout=20) as client:
        address = client.base_url.host, client.base_url.port
        with socket.create_connection(address) as connection:
            connection.sendall(b'POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{')
        wait_for(lambda: metric(client, 'vrag_errors_total', route='/search'))
        assert metric(client, 'vrag_errors_total', route='/search', status=400) == 1
        assert metric(client, 'vrag_errors_total', route='/search', status=500) == 0


@pytest.mark.parametrize('query,status,field', [
    ('', 422, 'queries'),
    ('?query=a', 422, 'queries'),
    ('?' + '&'.join(['queries=a'] * 1025), 422, 'queries'),
    ('?queries=a&queries=' + 'b' * 8193, 422, 'queries.1'),
])
def test_what_is_wrong_with_a_get_is_named(client, query, status, field):
    assert fault(client.get(f'/search{query}')) == (status, field)


def test_a_url_that_is_too_long_is_refused(live):
    with running(live, limits=ServiceLimits(url_bytes=5000)) as (url, _):
        response = httpx.get(f'{url}/search', params={'queries': 'a' * 6000})
    assert fault(response) == (414, 'queries')


@pytest.mark.parametrize('method,path,status,field', [
    ('GET', '/nothing', 404, 'path'), ('DELETE', '/search', 405, 'method')])
def test_other_errors_are_json_too(client, method, path, status, field):
    assert fault(client.request(method, path)) == (status, field)


# ---- Load


class SlowEngine:
    """Holds every search until it is let go."""

    def __init__(self):
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)

    def find(self, queries, k, filters=None):
        self.entered.release()
        assert self.go.wait(20)
        return [[] for _ in queries]


@pytest.fixture
def slow(live):
    """A live index whose searches are held."""
    version = live.current
    return types.SimpleNamespace(current=types.SimpleNamespace(
        store=version.store, engine=SlowEngine(), name='slow',
        json_heads=version.json_heads), reloads=0, failures=0)


def test_the_service_answers_while_searches_are_under_way(slow):
    with running(slow, search_threads=3) as (url, _), \
            concurrent.futures.ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(httpx.post, f'{url}/search', json={'queries': ['a']}, timeout=20)
                    for _ in range(3)]
        for _ in searches:
            assert slow.current.engine.entered.acquire(timeout=20)
        assert httpx.get(f'{url}/healthz').json()['status'] == 'ok'
        assert httpx.get(f'{url}/pages/report_1').status_code == 200
        assert not any(search.done() for search in searches)
        slow.current.engine.go.set()
        assert [search.result().status_code for search in searches] == [200] * 3


def test_a_service_with_too_much_to_do_says_so(slow):
    with running(slow, limits=ServiceLimits(waiting=2)) as (url, _), \
            concurrent.futures.ThreadPoolExecutor(2) as pool:
        searches = [pool.submit(httpx.post, f'{url}/search', json={'queries': ['a']}, timeout=20)
                    for _ in range(2)]
        for _ in searches:
            assert slow.current.engine.entered.acquire(timeout=20)
        refused = httpx.post(f'{url}/search', json={'queries': ['a']})
        assert fault(refused) == (503, '') and refused.headers['Retry-After'] == '1'
        slow.current.engine.go.set()
        assert [search.result().status_code for search in searches] == [200] * 2
        assert httpx.post(f'{url}/search', json={'queries': ['a']}).status_code == 200


def test_requests_under_way_are_answered_when_the_service_stops(slow):
    with running(slow) as (url, server), concurrent.futures.ThreadPoolExecutor(1) as pool:
        search = pool.submit(httpx.post, f'{url}/search', json={'queries': ['a']}, timeout=20)
        assert slow.current.engine.entered.acquire(timeout=20)
        server.should_exit = True
        time.sleep(0.3)
        assert not search.done()
        slow.current.engine.go.set()
        assert search.result().json()['results'] == [[]]
    with pytest.raises(httpx.TransportError):
        httpx.get(f'{url}/healthz')


def test_a_failure_inside_is_told_without_its_inside(slow):
    def find(queries, k, filters=None):
        raise RuntimeError('secret')

    slow.current.engine = types.SimpleNamespace(find=find)
    with running(slow) as (url, _):
        response = httpx.post(f'{url}/search', json={'queries': ['a']})
        assert fault(response) == (500, '') and 'secret' not in response.text
        assert httpx.get(f'{url}/healthz').status_code == 200


def test_sixty_four_clients_get_the_hits_of_one(service, live):
    words = ['revenue', 'travel', '网络', 'hotels', 'figure 3', 'data centres']
    queries = [f'{a} {b}' for a in words for b in words]
    expected = [[(h.page_id, h.score) for h in hits]
                for hits in live.current.engine.search(queries, 5)]

    def work(start):
        with httpx.Client(base_url=service, timeout=30) as client:
            found = {}
            for i in range(start, start + 12):
                query = queries[i % len(queries)]
                response = client.post('/search', json={'queries': [query], 'k': 5})
                assert response.status_code == 200
                [hits] = response.json()['results']
                found[i % len(queries)] = [(h['page_id'], h['score']) for h in hits]
            return found

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        for found in pool.map(work, range(64)):
            for i, hits in found.items():
                assert hits == expected[i]


# ---- Metrics


def metric(client, name, **labels):
    """Value of one sample in Prometheus' text format."""
    for line in client.get('/metrics').text.splitlines():
        key, _, value = line.rpartition(' ')
        if key.partition('{')[0] == name and all(f'{k}="{v}"' in key for k, v in labels.items()):
            return float(value)
    return 0.0


@pytest.fixture
def client_of_new(live):
    """Client of a service that nobody has asked for anything yet."""
    with running(live) as (url, _), httpx.Client(base_url=url, timeout=20) as client:
        yield client


def test_metrics_count_what_was_asked(client_of_new):
    client = client_of_new
    for _ in range(3):
        client.get('/search', params={'queries': ['a', 'b']})
    client.post('/search', json={'queries': ['c'] * 5})
    client.post('/search', json={'queries': []})
    client.get('/pages/report_1')
    client.get('/pages/none/of/these')
    assert metric(client, 'vrag_requests_total', route='/search', method='GET', status=200) == 3
    assert metric(client, 'vrag_requests_total', route='/search', method='POST', status=200) == 1
    assert metric(client, 'vrag_errors_total', route='/search', status=422) == 1
    # One route for all pages, known or not.
    assert metric(client, 'vrag_errors_total', route='/pages/{page_id:path}', status=404) == 1
    assert metric(client, 'vrag_request_queries_count') == 4
    assert metric(client, 'vrag_request_queries_sum') == 3 * 2 + 5
    assert metric(client, 'vrag_request_seconds_count', route='/search') == 5
    assert metric(client, 'vrag_request_seconds_bucket', route='/search', le='10.0') == 5
    assert metric(client, 'vrag_pages') == len(PAGES)
    assert metric(client, 'vrag_waiting_requests') == 0


def test_metrics_tell_what_the_engine_has_done(client_of_new):
    client = client_of_new
    for queries in (['a 1'], ['a 1', 'b 2', 'c 3', 'c 3'], ['a 1', 'b 2', 'c 3']):
        client.post('/search', json={'queries': queries})
    assert metric(client, 'vrag_engine_queries_total') == 1 + 3 + 3
    assert metric(client, 'vrag_engine_cache_hits_total') == 0 + 1 + 3
    # Searched were the first alone, then the two new ones together.
    assert metric(client, 'vrag_engine_batch_count') == 2
    assert metric(client, 'vrag_engine_batch_sum') == 3
    assert metric(client, 'vrag_engine_batch_bucket', le='1.0') == 1
    assert metric(client, 'vrag_engine_batch_bucket', le='3.0') == 2
    assert metric(client, 'vrag_engine_batch_bucket', le='+Inf') == 2


def test_methods_that_do_not_exist_are_counted_together(client_of_new):
    client = client_of_new
    for n in range(3):
        assert client.request(f'METHOD{n}', '/search').status_code == 405
    assert metric(client, 'vrag_requests_total', method='other', status=405) == 3


def test_requests_that_come_together_are_searched_together(live, monkeypatch):
    engine = live.current.engine
    search, go, entered = engine.retriever.search, threading.Event(), threading.Semaphore(0)

    def held(queries, k, allowed=None):
        entered.release()
        assert go.wait(20)
        return search(queries, k, allowed)

    monkeypatch.setattr(engine.retriever, 'search', held)
    with running(live) as (url, _), concurrent.futures.ThreadPoolExecutor(20) as pool, \
            httpx.Client(base_url=url, timeout=20) as client:
        def ask(n):
            return httpx.post(f'{url}/search', json={'queries': [f'travel {n}']}, timeout=20)

        answers = [pool.submit(ask, 0)]
        assert entered.acquire(timeout=20)
        answers += [pool.submit(ask, n) for n in range(1, 20)]
        wait_for(lambda: metric(client, 'vrag_waiting_requests') == 20)
        wait_for(lambda: metric(client, 'vrag_engine_queries_total') == 20)
        go.set()
        found = [answer.result().json()['results'][0] for answer in answers]
        # One search of the first query and, while that was held, one of all others.
        assert metric(client, 'vrag_engine_batch_count') == 2
        assert metric(client, 'vrag_engine_batch_sum') == 20
    expected = engine.search([f'travel {n}' for n in range(20)], 10)
    assert [[hit['page_id'] for hit in hits] for hits in found] == [ids(hits) for hits in expected]
