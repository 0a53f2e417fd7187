"""What requests, answers and caches may take of a service's memory."""

import concurrent.futures
import json
import re
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.retrieval.engines import index_words
from tests.serving.conftest import PAGES, load_from, running, write_corpus
from tests.serving.test_search_service import fault, wait_for
from tests.serving.test_server import start
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder
from vrag_jax.serving.live import LiveIndex
from vrag_jax.serving.service_config import ServiceLimits


def test_a_small_request_cannot_ask_for_a_large_answer(client):
    answer = client.post('/search', json={'queries': ['a'] * 1024, 'k': 1000})
    assert fault(answer) == (422, 'k')
    assert '1024 queries x 1000 hits are 1024000; 32768 are allowed' in answer.json()['error']
    # As many as are allowed are answered.
    assert client.post('/search', json={'queries': ['a'] * 32, 'k': 1000}).status_code == 200
    assert fault(client.post('/search', json={'queries': ['a'] * 33, 'k': 1000})) == (422, 'k')


def test_nor_can_a_get(live):
    with running(live, get_results=10, limits=ServiceLimits(hits=100)) as (url, _):
        assert httpx.get(f'{url}/search', params={'queries': ['a'] * 10}).status_code == 200
        answer = httpx.get(f'{url}/search', params={'queries': ['a'] * 11})
    assert fault(answer) == (422, 'queries') and '100 are allowed' in answer.json()['error']


def test_a_long_answer_comes_in_pieces_and_is_whole(client, live):
    words = [word for page in PAGES for word in page[3].split()]
    queries = [f'{words[n % len(words)]} revenue {n}' for n in range(1000)]
    with client.stream('POST', '/search', json={'queries': queries, 'k': 17}) as answer:
        assert 'content-length' not in answer.headers
        data = answer.read()
    assert len(data) > 1 << 19
    found = [[(hit['page_id'], hit['score']) for hit in hits]
             for hits in json.loads(data)['results']]
    assert found == live.current.engine.search(queries, 17)
    files = client.get('/search', params={'queries': queries}).json()
    assert [len(hits) for hits in files] == [10] * 1000
    path = {page.page_id: str(live.current.store.path(page.page_id))
            for page in live.current.store}
    for hits, expected in zip(files, live.current.engine.search(queries, 10), strict=True):
        assert [hit['image_file'] for hit in hits][:len(expected)] == [
            path[hit.page_id] for hit in expected]


def memory_of(process):
    """MiB that a process holds."""
    with open(f'/proc/{process.pid}/status') as status:
        return int(re.search(r'VmRSS:\s+(\d+) kB', status.read())[1]) / 1024


def started(folder, workdir, *overrides):
    """A service as a user starts it, over a corpus: its process and URL."""
    process = start(workdir, '--config.data.source=files', '--config.serving.port=0',
                    f'--config.data.manifest={folder / "pages.jsonl"}', *overrides)
    for line in process.stdout:
        if line.startswith('serving'):
            return process, line.split()[-1]
    raise AssertionError('the service has ended')


def test_memory_stays_when_many_ask_for_much(tmp_path):
    """The largest answers that are allowed, from many clients at once, none asked for twice."""
    folder = tmp_path / 'many'
    folder.mkdir()
    Image.new('RGB', (28, 28)).save(folder / 'page.png')
    PageStore.write(folder / 'pages.jsonl', [
        Page(f'report/{n}', 'report', n, 'page.png', 28, 28, f'page {n % 50} of the report')
        for n in range(1, 1501)])
    store = PageStore.open(folder / 'pages.jsonl')
    index_words(store, [page.text for page in store], NgramEncoder(), folder / 'index')
    process, url = started(folder, folder)
    try:
        def ask(n):
            body = {'queries': [f'page {m} of the report, {n}' for m in range(32)], 'k': 1000}
            answer = httpx.post(f'{url}/search', json=body, timeout=120)
            assert answer.status_code == 200
            return sum(map(len, answer.json()['results']))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
            before = memory_of(process)
            assert sum(pool.map(ask, range(8, 80))) == 72 * 32 * 1000
        # 2.3 million hits: 28 MB as they are cached, 250 as pairs of Python objects.
        assert memory_of(process) - before < 100
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def large_pages(tmp_path):
    """A corpus of one page of noise, of 3 MB as PNG."""
    folder = write_corpus(tmp_path / 'large', PAGES[:1])
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    Image.fromarray(noise).save(folder / 'img' / '0.png')
    PageStore.write(folder / 'pages.jsonl', [
        Page(*PAGES[0][:3], 'img/0.png', 1000, 1000, PAGES[0][3])])
    store = PageStore.open(folder / 'pages.jsonl')
    index_words(store, [page.text for page in store], NgramEncoder(), folder / 'index')
    return folder


def test_images_that_nobody_takes_are_bounded(large_pages):
    live = LiveIndex(load_from(large_pages), (large_pages / 'pages.jsonl',))
    limits = ServiceLimits(sending_bytes=7_000_000, answer_seconds=30)
    with running(live, limits=limits) as (url, _):
        host, port = url.removeprefix('http://').split(':')
        idle = []
        for _ in range(2):
            connection = socket.socket()
            # Small, so that the system takes next to nothing off the service's hands.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(b'GET /pages/report_1 HTTP/1.1\r\nHost: a\r\n\r\n')
            assert connection.recv(100).startswith(b'HTTP/1.1 200')
            idle.append(connection)
        assert fault(httpx.get(f'{url}/pages/report_1', timeout=20)) == (503, '')
        assert httpx.post(f'{url}/search', json={'queries': ['a']}).status_code == 200
        idle.pop().close()
        wait_for(lambda: httpx.get(f'{url}/pages/report_1').status_code == 200)
        idle.pop().close()


def test_bodies_that_wait_are_bounded(live):
    limits = ServiceLimits(waiting_bytes=2_000_000, body_seconds=20)
    with running(live, limits=limits) as (url, _):
        host, port = url.removeprefix('http://').split(':')
        go = threading.Event()

        def slowly():
            yield b'{"queries": ["' + b'a' * 900_000
            assert go.wait(20)
            yield b'"]}'

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            slow = [pool.submit(httpx.post, f'{url}/search', content=slowly(), timeout=30)
                    for _ in range(2)]
            time.sleep(1.0)
            body = json.dumps({'queries': ['b' * 8000] * 100}).encode()
            assert fault(httpx.post(f'{url}/search', content=body)) == (503, '')
            assert httpx.post(f'{url}/search', json={'queries': ['a']}).status_code == 200
            go.set()
            assert [fault(answer.result()) for answer in slow] == [(422, 'queries.0')] * 2
        assert httpx.post(f'{url}/search', content=body).status_code == 200


def test_the_live_index_is_told_what_its_caches_may_take(make_corpus, tmp_path):
    folder = make_corpus()
    process, url = started(folder, tmp_path / 'run', '--config.serving.cache_bytes=0',
                           '--config.serving.image_cache_bytes=0')
    try:
        for _ in range(2):
            assert httpx.post(f'{url}/search', json={'queries': ['travel']}).status_code == 200
            assert httpx.get(f'{url}/pages/report_1').status_code == 200
        # Nothing was kept, so nothing was known.
        text = httpx.get(f'{url}/metrics').text
        assert 'vrag_engine_cache_hits_total 0.0' in text
        assert 'vrag_engine_queries_total 2.0' in text
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
