"""The client of a search service, against servers that answer as a test decides."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vrag_jax.config import ConfigError, parse
from vrag_jax.retrieval.hits import Hit
from vrag_jax.retrieval.remote import RemoteSearch, RemoteSearchConfig, SearchServiceError
from vrag_jax.run.run_config import RunConfig

KNOWN = {f'p{n}' for n in range(100)}
FAST = {'backoff_s': 0.01, 'max_backoff_s': 0.02}


class FakeServer:
    """Answers with `reply(path, body, number)`: a status and JSON, text, or None to hang up."""

    def __init__(self, reply):
        self.received = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def answer(self):
                length = int(self.headers.get('Content-Length', 0))
                body = json.loads(self.rfile.read(length)) if length else None
                fake.received.append((self.command, self.path, body))
                reply_now = reply(self.path, body, len(fake.received))
                if reply_now is None:
                    self.close_connection = True
                    return
                status, value = reply_now
                data = (value if isinstance(value, str) else json.dumps(value)).encode()
                try:
                    self.send_response(status)
                    self.send_header('Content-Length', str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # The client has given up waiting.

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def results(body):
    """Hits that tell which query they are of: query 'p7' finds p7, p8, ..."""
    return {'results': [[{'page_id': f'p{int(query[1:]) + i}', 'score': 1 / (i + 1)}
                         for i in range(body['k'])] for query in body['queries']]}


@pytest.fixture
def serve():
    """Returns a function that starts a server and a client of it."""
    opened = []

    def start(reply, known=KNOWN, **changes):
        server = FakeServer(reply)
        client = RemoteSearch(server.url, known, RemoteSearchConfig(**{**FAST, **changes}))
        opened.append((server, client))
        return server, client

    yield start
    for server, client in opened:
        client.close()
        server.close()


def test_hits_come_in_the_order_of_the_queries(serve):
    server, client = serve(lambda path, body, _: (200, results(body)))
    assert client.search(['p4', 'p9', 'p4'], 2) == [
        [Hit('p4', 1.0), Hit('p5', 0.5)], [Hit('p9', 1.0), Hit('p10', 0.5)],
        [Hit('p4', 1.0), Hit('p5', 0.5)]]
    assert server.received == [('POST', '/search', {'queries': ['p4', 'p9', 'p4'], 'k': 2})]


def test_many_queries_go_out_in_batches(serve):
    server, client = serve(lambda path, body, _: (200, results(body)), batch=4)
    queries = [f'p{n}' for n in range(10)]
    assert [hits[0].page_id for hits in client.search(queries, 1)] == queries
    assert [len(body['queries']) for _, _, body in server.received] == [4, 4, 2]


def test_a_request_asks_for_no_more_hits_than_allowed(serve):
    server, client = serve(lambda path, body, _: (200, results(body)), batch=8, hits=12)
    queries = [f'p{n}' for n in range(10)]
    for k, sizes in ((1, [8, 2]), (4, [3, 3, 3, 1]), (12, [1] * 10), (20, [1] * 10)):
        server.received.clear()
        assert [hits[0].page_id for hits in client.search(queries, k)] == queries
        assert [len(body['queries']) for _, _, body in server.received] == sizes


def test_what_the_service_allows_is_asked_for(serve):
    limits = {'queries': 5, 'hits': 6, 'body_bytes': 1 << 20, 'k': 10, 'something': 'new'}
    server, client = serve(lambda path, body, _: (
        200, {'pages': 100, 'limits': limits} if path == '/healthz' else results(body)))
    assert client.check() == 100
    for k, sizes in ((1, [5, 5, 2]), (2, [3] * 4)):
        server.received.clear()
        client.search([f'p{n}' for n in range(12)], k)
        assert [len(body['queries']) for _, _, body in server.received] == sizes


def test_long_queries_go_out_in_more_requests(serve):
    sizes = []

    def reply(path, body, _):
        sizes.append(len(json.dumps(body, ensure_ascii=False, separators=(',', ':')).encode()))
        return 200, {'results': [[] for _ in body['queries']]}

    server, client = serve(reply, body_bytes=200)
    queries = ['中' * 20, '"' * 30, 'a' * 300, *['b' * 40] * 9, 'c']
    assert client.search(queries, 10, {'document': 'd'}) == [[]] * len(queries)
    sent = [body['queries'] for _, _, body in server.received]
    assert [query for batch in sent for query in batch] == queries
    assert ['a' * 300] in sent  # One that is longer by itself goes alone: it may be allowed.
    assert max(size for size, batch in zip(sizes, sent, strict=True) if batch != ['a' * 300]) <= 200
    assert [len(batch) for batch in sent] == [2, 1, 3, 3, 4]


def test_without_queries_nobody_is_asked(serve):
    server, client = serve(lambda path, body, _: (200, results(body)))
    assert client.search([], 3) == [] and server.received == []
    with pytest.raises(ValueError, match='k must be positive'):
        client.search(['p1'], 0)


def test_filters_are_sent(serve):
    server, client = serve(lambda path, body, _: (200, results(body)))
    client.search(['p1'], 1, {'document': ('a', 'b'), 'year': 2020})
    assert server.received[0][2]['filters'] == {'document': ['a', 'b'], 'year': 2020}


@pytest.mark.parametrize('fault', [(503, {'error': 'busy', 'field': ''}), (502, 'x'), (429, ''),
                                   (500, '<html>'), None])
def test_what_fails_in_passing_is_tried_again(serve, fault):
    server, client = serve(
        lambda path, body, number: fault if number < 3 else (200, results(body)))
    assert client.search(['p1'], 1) == [[Hit('p1', 1.0)]]
    assert len(server.received) == 3


def test_in_the_end_it_gives_up_and_names_the_service(serve):
    server, client = serve(lambda *_: (503, {'error': 'busy', 'field': ''}), attempts=3)
    with pytest.raises(SearchServiceError, match=f'{server.url}: .*3 attempts.*503: busy'):
        client.search(['p1'], 1)
    assert len(server.received) == 3


def test_pauses_grow_up_to_a_bound(serve, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, 'sleep', pauses.append)
    _, client = serve(lambda *_: (503, ''), attempts=6, backoff_s=0.5, max_backoff_s=3.0)
    with pytest.raises(SearchServiceError):
        client.search(['p1'], 1)
    assert [p for p in pauses if p >= 0.5] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_request_that_is_refused_is_not_sent_again(serve):
    server, client = serve(lambda *_: (422, {'error': 'must be in [1, 5]', 'field': 'k'}))
    with pytest.raises(SearchServiceError, match=rf'{server.url}: .*422: k: must be in \[1, 5\]'):
        client.search(['p1'], 9)
    assert len(server.received) == 1


def test_a_service_that_is_not_there_is_named():
    server = FakeServer(lambda *_: (200, {}))
    server.close()
    client = RemoteSearch(server.url, KNOWN, RemoteSearchConfig(attempts=2, **FAST))
    with pytest.raises(SearchServiceError, match=f'{server.url}: .*2 attempts: ConnectError'):
        client.check()


def test_a_service_that_does_not_answer_is_not_waited_for_for_ever(serve):
    go = threading.Event()
    server, client = serve(lambda *_: (go.wait(10), (200, {}))[1], attempts=2, timeout_s=0.2)
    start = time.monotonic()
    with pytest.raises(SearchServiceError, match=f'{server.url}: .*ReadTimeout'):
        client.search(['p1'], 1)
    assert time.monotonic() - start < 5
    go.set()


def test_a_page_that_is_not_of_this_run_is_an_error(serve):
    server, client = serve(lambda path, body, _: (200, results(body)), known={'p1'})
    assert client.search(['p1'], 1) == [[Hit('p1', 1.0)]]
    with pytest.raises(SearchServiceError, match=f"{server.url}: found page 'p2', .*same pages"):
        client.search(['p2'], 1)


@pytest.mark.parametrize('answer,message', [
    ({'results': []}, '0 results for 1 queries'), ({'hits': []}, "KeyError.*'results'"),
    ({'results': [[{'page': 'p1'}]]}, "KeyError.*'page_id'"), ('no JSON', 'gave no JSON'),
    ([], 'gave no search results'),
])
def test_an_answer_of_something_else_is_an_error(serve, answer, message):
    server, client = serve(lambda *_: (200, answer))
    with pytest.raises(SearchServiceError, match=f'{server.url}: .*{message}'):
        client.search(['p1'], 1)
    assert len(server.received) == 1


def test_check_asks_how_many_pages_there_are(serve):
    _, client = serve(lambda path, body, _: (200, {'status': 'ok', 'pages': 7}))
    assert client.check() == 7
    _, other = serve(lambda path, body, _: (200, {'hello': 'world'}))
    with pytest.raises(SearchServiceError, match='is no search service'):
        other.check()


@pytest.mark.parametrize('url', ['localhost:8002', 'ftp://a', 'http://', '8002'])
def test_what_is_no_url_is_refused_in_the_config(url):
    with pytest.raises(ConfigError, match='config.retrieval: url must be like'):
        parse(RunConfig, {'task': 'loop', 'retrieval': {'url': url}})


@pytest.mark.parametrize('field', ['timeout_s', 'attempts', 'connections', 'batch',
                                   'body_bytes'])
def test_impossible_settings_are_refused(field):
    with pytest.raises(ConfigError, match=f'{field} must be positive'):
        parse(RunConfig, {'task': 'loop', 'retrieval': {'remote': {field: 0}}})
