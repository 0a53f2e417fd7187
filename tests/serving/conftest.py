"""A small corpus with names of all kinds, and services over it that really listen."""

import contextlib
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip('fastapi', reason="needs the extra 'serve'")

import uvicorn  # noqa: E402

from tests.retrieval.engines import index_words
from vrag_jax.corpus.pages import Page, PageStore  # noqa: E402
from vrag_jax.retrieval.engine import SearchEngine  # noqa: E402
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder  # noqa: E402
from vrag_jax.serving.live import LiveIndex  # noqa: E402
from vrag_jax.serving.server import listen, server_config  # noqa: E402
from vrag_jax.serving.service_config import ServiceConfig  # noqa: E402

SIZE = 300, 200
# Id, document, page, text, own fields.
PAGES = [
    ('report_1', 'report', 1, 'revenue of the travel business', {'year': 2019, 'kind': 'slide'}),
    ('report_2', 'report', 2, 'revenue of hotels in Asia', {'year': 2020, 'kind': 'slide'}),
    ('annual/2020/3', 'annual', 3, 'hotels and travel, revenue by region', {'year': 2020}),
    ('云/网络 1', '云', 1, '数据中心 网络 降价', {'kind': 'slide'}),
    ('what?#50%', 'odd', 1, 'network of data centres', {}),
    *((f'more_{n}', 'more', n, f'appendix {n}: travel figure {n}', {}) for n in range(1, 13)),
]


@pytest.fixture
def make_corpus(tmp_path):
    """Returns a function that writes pages and index into a folder, replacing those there."""
    return lambda name='corpus', pages=PAGES, images='img': write_corpus(
        tmp_path / name, pages, images)


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
    """Folder of a corpus that no test changes."""
    return write_corpus(tmp_path_factory.mktemp('corpus'), PAGES)


def write_corpus(folder, pages, images='img'):
    (folder / images).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (page_id, document, page, text, fields) in enumerate(pages):
        file = f'{images}/{number}.png'
        picture(number).save(folder / file)
        rows.append(Page(page_id, document, page, file, *SIZE, text, fields))
    PageStore.write(folder / 'pages.jsonl', rows)
    store = PageStore.open(folder / 'pages.jsonl')
    index_words(store, [page.text for page in store], NgramEncoder(), folder / 'index')
    return folder


def picture(number):
    """An image whose every pixel tells its place: red is x, green y, blue the page."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    return Image.fromarray(np.stack([x % 256, y, x * 0 + number], axis=2).astype(np.uint8))


def load_from(folder):
    def load():
        store = PageStore.open(folder / 'pages.jsonl')
        return store, SearchEngine.open(folder / 'index', store)

    return load


def live_index(folder):
    return LiveIndex(load_from(folder),
                     (folder / 'pages.jsonl', folder / 'index' / 'manifest.json'))


@contextlib.contextmanager
def running(live, **changes):
    """A service that listens on a free port: its URL and server."""
    config = ServiceConfig(**{'port': 0, 'reload_seconds': 0.0, **changes})
    with listen(config) as listener:
        server = uvicorn.Server(server_config(live, config))
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not server.started and time.monotonic() < deadline:
                time.sleep(0.01)
            assert server.started
            yield f'http://127.0.0.1:{listener.getsockname()[1]}', server
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


@pytest.fixture
def live(corpus):
    return live_index(corpus)


@pytest.fixture(scope='session')
def service(corpus):
    """URL of a service with the default settings."""
    with running(live_index(corpus)) as (url, _):
        yield url


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service, timeout=20) as client:
        yield client
