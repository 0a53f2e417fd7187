"""Clients that hold connections: byte by byte, silently, in numbers, or by taking nothing."""

import contextlib
import json
import socket
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.retrieval.engines import index_words
from tests.serving.conftest import PAGES, load_from, running, write_corpus
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder
from vrag_jax.serving.live import LiveIndex
from vrag_jax.serving.service_config import ServiceLimits

QUICK = ServiceLimits(header_seconds=0.5, body_seconds=0.5, idle_seconds=1.0, answer_seconds=1.0)
REQUEST = b'GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n'


@pytest.fixture
def address(live):
    with running(live, limits=QUICK) as (url, _):
        host, port = url.removeprefix('http://').split(':')
        yield host, int(port)


def ask(connection):
    """Status of an answer, of which all is read."""
    connection.sendall(REQUEST)
    answer = b''
    while not answer.endswith(b'}}'):
        received = connection.recv(65_536)
        assert received, answer
        answer += received
    return int(answer.split()[1])


def held(connection, data, seconds=6.0):
    """What a server says to one that sends a byte now and then, and when it hangs up."""
    begun, answer = time.monotonic(), b''
    connection.settimeout(0.05)
    rest = iter(data)
    while time.monotonic() - begun < seconds:
        with contextlib.suppress(TimeoutError):
            try:
                received = connection.recv(65_536)
            except ConnectionError:  # Closed while a byte was on its way.
                received = b''
            if not received:
                return answer, time.monotonic() - begun
            answer += received
        with contextlib.suppress(OSError):
            connection.sendall(bytes([next(rest, ord('x'))]))
    raise AssertionError(f'held for {seconds} s, got {answer[:100]}')


def test_headers_that_come_byte_by_byte_are_given_up(address):
    with socket.create_connection(address) as connection:
        answer, seconds = held(connection, b'GET /healthz HTTP/1.1\r\nHost: a\r\nX: ')
    head, _, body = answer.partition(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 408 ') and b'Connection: close' in head and seconds < 4
    assert json.loads(body) == {
        'error': 'the headers were not there after 0.5 seconds', 'field': ''}


def test_so_are_those_of_a_later_request(address):
    with socket.create_connection(address) as connection:
        assert ask(connection) == 200
        time.sleep(0.7)  # Idle for longer than headers may take: that is allowed.
        assert ask(connection) == 200
        answer, seconds = held(connection, b'GET /healthz HTTP/1.1\r\nX: ')
    assert answer.startswith(b'HTTP/1.1 408 ') and seconds < 4


@pytest.mark.parametrize('path,status', [('POST /search', b'408'), ('GET /healthz', b'200'),
                                         ('POST /nothing', b'404')])
def test_bodies_that_come_byte_by_byte_are_given_up(address, path, status):
    # Whether the route reads bodies or not.
    with socket.create_connection(address) as connection:
        connection.sendall(f'{path} HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n'.encode())
        answer, seconds = held(connection, b'')
    assert answer.startswith(b'HTTP/1.1 ' + status) and seconds < 5


def test_connections_without_a_request_are_closed(address):
    with socket.create_connection(address) as silent, socket.create_connection(address) as idle:
        assert ask(idle) == 200
        for connection in (silent, idle):
            connection.settimeout(5)
            assert connection.recv(65_536) == b''


def test_there_are_no_more_connections_than_allowed(live):
    with running(live, limits=ServiceLimits(connections=3)) as (url, _):
        host, port = url.removeprefix('http://').split(':')
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                connection = stack.enter_context(socket.create_connection((host, int(port))))
                assert ask(connection) == 200
            answer = httpx.get(f'{url}/healthz')
            assert answer.status_code == 503 and answer.headers['Retry-After'] == '1'
            assert answer.json() == {'error': '3 connections are open already', 'field': ''}
        deadline = time.monotonic() + 20
        while httpx.get(f'{url}/healthz').status_code != 200:
            assert time.monotonic() < deadline


@pytest.fixture
def large(tmp_path):
    """A live index of one page of noise, of 12 MB as PNG."""
    folder = write_corpus(tmp_path / 'large', PAGES[:1])
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    Image.fromarray(noise).save(folder / 'img' / '0.png', compress_level=0)
    PageStore.write(folder / 'pages.jsonl', [
        Page(*PAGES[0][:3], 'img/0.png', 2000, 2000, PAGES[0][3])])
    store = PageStore.open(folder / 'pages.jsonl')
    index_words(store, [page.text for page in store], NgramEncoder(), folder / 'index')
    return LiveIndex(load_from(folder), (folder / 'pages.jsonl',))


def test_a_client_that_does_not_take_its_answer_is_hung_up_on(large):
    with running(large, limits=QUICK) as (url, server):
        host, port = url.removeprefix('http://').split(':')
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(b'GET /pages/report_1 HTTP/1.1\r\nHost: a\r\n\r\n')
            assert connection.recv(100).startswith(b'HTTP/1.1 200')
            deadline = time.monotonic() + 20
            while server.server_state.connections:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        # Who takes it gets it all, and the connection stays good for more than its time.
        with httpx.Client(base_url=url, timeout=20) as client:
            for _ in range(4):
                assert len(client.get('/pages/report_1').content) > 12_000_000
                time.sleep(0.4)
