"""Pages that are replaced while clients of `GET /search` open the files that they are told of."""

import threading
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.service_day_pages import Spelled, name, read_picture, write_document
from tests.retrieval.engines import index_words
from tests.serving.conftest import running
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.pages import PageStore, load_image
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder
from vrag_jax.serving.live import LiveIndex

DOCUMENTS = 4


@pytest.fixture
def pages(tmp_path):
    """A folder of pages and index, and a function that makes all of another version."""
    sources, out = tmp_path / 'in', tmp_path / 'out'
    sources.mkdir()

    def update(version):
        for document in range(DOCUMENTS):
            write_document(sources, document, version)
        ingest([sources], out, IngestConfig(workers=1, most_deleted=1.0), progress=False)
        store = PageStore.open(out / 'pages.jsonl')
        index_words(store, [page.text for page in store], NgramEncoder(), out / 'index')

    update(1)
    return out, update


def live_pages(out, keep_seconds):
    def load():
        store = PageStore.open(out / 'pages.jsonl')
        return store, SearchEngine.open(out / 'index', store)

    return LiveIndex(load, (out / 'pages.jsonl', out / 'index' / 'manifest.json'), keep_seconds)


def folders(out):
    return {folder.name for folder in (out / 'documents').iterdir()}


def test_files_that_get_search_names_are_there_under_constant_updates(pages):
    out, update = pages
    done, faults, looked = threading.Event(), [], []

    def ask(url):
        with httpx.Client(base_url=url, timeout=20) as client:
            while not done.is_set():
                wanted = Spelled(len(looked) % DOCUMENTS, 1, 1)
                [hits] = client.get('/search', params={'queries': wanted.words}).json()
                time.sleep(0.05)  # As clients do, that have other things to do first.
                for hit in hits:
                    looked.append(hit)
                    try:
                        found = read_picture(load_image(Path(hit['image_file'])))
                        assert name(found.document) and 1 <= found.version <= 8
                    except Exception as error:
                        faults.append(error)

    with running(live_pages(out, 60.0), reload_seconds=2.0) as (url, _):
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for version in range(2, 8):
                update(version)
        finally:
            done.set()
            for thread in threads:
                thread.join()
    assert looked and faults == []


def test_old_images_stay_for_as_long_as_the_service_keeps_them(pages):
    out, update = pages
    first = folders(out)
    live = live_pages(out, 1.0)
    update(2)
    assert live.refresh() and first <= folders(out)
    update(3)  # The service has 2, and keeps 1 for those whom it has told of files.
    assert first <= folders(out) and len(folders(out)) == 3 * DOCUMENTS
    time.sleep(1.1)
    assert live.refresh()
    update(4)
    assert not first & folders(out)
    assert live.current.store.image('doc0001_2').size[0] > 100  # Of 3, which it still has.


def test_a_service_that_keeps_nothing_lets_go_at_once(pages):
    out, update = pages
    first = folders(out)
    live = live_pages(out, 0.0)
    update(2)
    assert live.refresh()
    update(2)
    assert not first & folders(out)
