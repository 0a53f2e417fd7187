"""An index that is replaced on disk: no request is lost, none meets halves of two versions."""

import concurrent.futures
import gc
import shutil
import threading
import time
import weakref

import httpx
import pytest

from tests.retrieval.engines import index_words
from tests.serving.conftest import PAGES, live_index, load_from, running
from tests.serving.test_search_service import metric
from vrag_jax.retrieval.lexical.ngram_encoder import NgramConfig, NgramEncoder
from vrag_jax.serving.live import LiveIndex

NEW = [('new_1', 'new', 1, 'revenue of the moon', {}),
       ('new_2', 'new', 2, 'travel to the moon', {})]


def test_nothing_happens_while_nothing_is_replaced(live):
    before = live.current
    assert not live.refresh() and live.current is before and live.reloads == 0


def test_new_pages_and_their_index_come_in_together(make_corpus):
    live = live_index(make_corpus())
    old = live.current
    make_corpus(pages=NEW)
    assert live.refresh() and live.reloads == 1
    assert live.current.store.ids == ('new_1', 'new_2') and live.current.name != old.name
    assert live.current.engine.search(['moon travel'], 1)[0][0].page_id == 'new_2'
    # Whoever has the old version still works with it.
    assert old.engine.search(['hotels'], 1)[0][0].page_id in old.store


def test_an_index_made_anew_of_the_same_pages_comes_in(make_corpus):
    folder = make_corpus()
    live = live_index(folder)
    old = live.current
    store = old.store
    index_words(store, [page.text for page in store], NgramEncoder(NgramConfig(k1=2.0)),
                       folder / 'index')
    assert live.refresh() and live.current.name != old.name


def test_pages_without_their_index_are_not_used_until_it_is_there(make_corpus, tmp_path):
    folder = make_corpus()
    live = live_index(folder)
    other = make_corpus('other', pages=NEW)
    shutil.copy(other / 'pages.jsonl', folder / 'pages.jsonl')
    assert not live.refresh() and live.failures == 1
    assert len(live.current.store) == len(PAGES)
    assert not live.refresh() and live.failures == 1  # not tried again for nothing
    shutil.rmtree(folder / 'index')
    shutil.copytree(other / 'index', folder / 'index')
    assert live.refresh() and live.current.store.ids == ('new_1', 'new_2')


def test_a_damaged_index_is_not_used(make_corpus):
    folder = make_corpus()
    live = live_index(folder)
    (folder / 'index' / 'manifest.json').write_text('{')
    assert not live.refresh() and live.failures == 1
    assert live.current.engine.search(['hotels'], 1)[0]


def test_an_old_version_is_let_go_of_when_its_last_request_is_done(make_corpus):
    # By counting references: the collector leaves alone what was there at the start.
    live = live_index(make_corpus())
    engine, store = weakref.ref(live.current.engine), weakref.ref(live.current.store)
    under_way = live.current
    live.current.engine.search(['revenue'], 2)
    make_corpus(pages=NEW)
    gc.disable()
    try:
        assert live.refresh() and engine() is under_way.engine
        del under_way
        assert engine() is None and store() is None
    finally:
        gc.enable()


def test_a_page_whose_file_has_moved_is_shown_from_the_new_version(make_corpus):
    folder = make_corpus()
    with running(live_index(folder)) as (url, _):
        shutil.rmtree(folder / 'img')
        assert httpx.get(f'{url}/pages/report_1').status_code == 500
        make_corpus(pages=PAGES[1:], images='new')
        # No look is due (reload_seconds is 0): the missing file is the reason for one.
        assert httpx.get(f'{url}/pages/report_1').status_code == 404
        assert httpx.get(f'{url}/pages/report_2').status_code == 200
        assert httpx.get(f'{url}/healthz').json()['pages'] == len(PAGES) - 1


def test_a_page_is_shown_from_the_new_version_that_another_is_opening(make_corpus):
    folder = make_corpus()
    opening, go, asked = threading.Event(), threading.Event(), threading.Event()
    load, first = load_from(folder), []

    def slow():
        if first:
            opening.set()
            assert go.wait(20)
        first.append(True)
        return load()

    live = LiveIndex(slow, (folder / 'pages.jsonl', folder / 'index' / 'manifest.json'))
    refresh = live.refresh

    def watched():
        if opening.is_set():
            asked.set()
        return refresh()

    live.refresh = watched
    with running(live) as (url, _), concurrent.futures.ThreadPoolExecutor(2) as pool:
        make_corpus(pages=PAGES[1:], images='new')
        shutil.rmtree(folder / 'img')
        watcher = pool.submit(live.refresh)
        assert opening.wait(20)
        answer = pool.submit(httpx.get, f'{url}/pages/report_2', timeout=20)
        assert asked.wait(20)
        go.set()
        assert answer.result().status_code == 200 and watcher.result()
        assert live.reloads == 1


def test_there_must_be_an_index_at_the_start(make_corpus):
    folder = make_corpus()
    shutil.rmtree(folder / 'index')
    with pytest.raises(FileNotFoundError):
        LiveIndex(load_from(folder), (folder / 'index' / 'manifest.json',))


def test_no_request_is_lost_while_the_index_is_replaced(make_corpus):
    """Clients ask all the time; the corpus changes under them, back and forth."""
    folder = make_corpus()
    corpora = {'old': {page[0] for page in PAGES}, 'new': {page[0] for page in NEW}}
    done = threading.Event()
    seen, faults = set(), []

    def ask(url):
        with httpx.Client(base_url=url, timeout=20) as client:
            while not done.is_set():
                try:
                    answer = client.post('/search', json={'queries': ['travel revenue'], 'k': 20})
                    [hits] = answer.json()['results']
                    found = {hit['page_id'] for hit in hits}
                    if not (found and any(found <= ids for ids in corpora.values())):
                        faults.append(found)
                    seen.add((answer.json()['version'], frozenset(found)))
                except Exception as error:
                    faults.append(error)

    with running(live_index(folder), reload_seconds=0.05) as (url, _):
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        with httpx.Client(base_url=url, timeout=20) as client:
            for pages in (NEW, PAGES, NEW):
                make_corpus(pages=pages)
                deadline = time.monotonic() + 20
                while client.get('/healthz').json()['pages'] != len(pages):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                time.sleep(0.1)
            done.set()
            for thread in threads:
                thread.join()
            assert metric(client, 'vrag_index_reloads_total', result='done') >= 3
            assert metric(client, 'vrag_pages') == len(NEW)
    assert faults == []
    assert {found <= corpora['new'] for _, found in seen} == {True, False}
    # A version is of one corpus.
    assert len({version for version, _ in seen}) == len(seen)
