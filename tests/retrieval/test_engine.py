"""Search over a store: right pages, bounded hits, one encoding a query, checked on opening."""

import dataclasses
import json
import threading
import tracemalloc

import numpy as np
import pytest

from tests.retrieval.engines import index_words
from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.corpus.pages import PageStore
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.hits import Hit, HitCache, PackedHits
from vrag_jax.retrieval.lexical.ngram import NgramVectorsRetriever
from vrag_jax.retrieval.lexical.ngram_encoder import NgramConfig, NgramEncoder
from vrag_jax.retrieval.single_vector.index import ScannIndex

TEXTS = ['revenue of Alibaba Cloud', '数据中心网络演进', 'leisure travel in Hong Kong',
         '实例费降价']


class CountingEncoder(NgramEncoder):
    """Remembers which queries it encoded."""

    def __init__(self):
        super().__init__(NgramConfig(buckets=1 << 18))
        self.encoded = []

    def encode_queries(self, texts):
        self.encoded.append(list(texts))
        return super().encode_queries(texts)


@pytest.fixture
def store(make_store):
    return make_store(TEXTS)


@pytest.fixture
def engine(store):
    return index_words(store, TEXTS, CountingEncoder())


def found(engine, queries, k):
    return [[hit.page_id for hit in hits] for hits in engine.search(queries, k)]


def test_each_query_finds_its_page(engine):
    queries = ['What was the cloud revenue?', '网络演进中的数据中心', 'travelling in hong kong',
               '降价多少']
    assert found(engine, queries, 1) == [['p1'], ['p2'], ['p3'], ['p4']]


def test_hits_are_sorted_different_and_no_more_than_asked_for(engine):
    for k in (1, 2, 3, 100):
        [hits] = engine.search(['revenue travel 降价'], k)
        scores = [hit.score for hit in hits]
        assert len({hit.page_id for hit in hits}) == len(hits) == min(k, 3)
        assert scores == sorted(scores, reverse=True)
        assert all(type(score) is float for score in scores)


def test_a_query_that_shares_no_term_with_any_page_finds_nothing(engine):
    assert found(engine, ['zzqqzz', 'revenue', '', 'of the'], 1) == [[], ['p1'], [], []]
    assert engine.search(['zzqqzz'], 3) == [[]]
    assert engine.search([], 3) == []
    with pytest.raises(ValueError, match='k must be positive'):
        engine.search(['revenue'], 0)


def test_a_query_is_encoded_once(engine):
    first = engine.search(['revenue', 'travel', 'revenue'], 2)
    assert first[0] == first[2]
    assert engine.search(['travel', '降价'], 2)[0] == first[1]
    assert engine.retriever.encoder.encoded == [['revenue', 'travel'], ['降价']]
    engine.search(['revenue'], 3)
    assert engine.retriever.encoder.encoded[2:] == [['revenue']]  # More hits are another search.


def test_the_cache_forgets_the_least_recent_query(store):
    encoder = CountingEncoder()
    retriever = index_words(store, TEXTS, encoder).retriever
    engine = SearchEngine(store, retriever, cache_bytes=2 * 300)  # Of hits of two queries.
    for query in ('a1', 'b2', 'a1', 'c3', 'a1', 'b2'):
        engine.search([query], 1)
    assert encoder.encoded == [['a1'], ['b2'], ['c3'], ['b2']]


def test_the_cache_takes_no_more_than_its_bytes():
    ids = [f'p{n}' for n in range(1000)]
    numbers = {page_id: n for n, page_id in enumerate(ids)}
    tracemalloc.start()
    try:
        cache = HitCache(ids, 4 << 20)
        before = tracemalloc.get_traced_memory()[0]
        for n in range(300):
            # Long queries, many hits, filters of many values: whatever makes an entry.
            k = (1, 10, 1000)[n % 3]
            found = {f'{n} {m} ' + 'travel ' * m: PackedHits.pack(
                ids, numbers, ids[:k], np.zeros(k)) for m in range(100)}
            cache.put(found, k, tuple(str(m) for m in range(n)))
        del found
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 * (4 << 20) < taken < 1.1 * (4 << 20) and cache.size <= 4 << 20


def test_hits_are_packed_to_the_last_bit():
    ids = [f'p{n}' for n in range(70_000)]
    numbers = {page_id: n for n, page_id in enumerate(ids)}
    for scores in (np.float32([0.1, -3e-38, 7]), np.array([0.1, 1 / 3, 5.0]), np.zeros(0)):
        found = [ids[-1], ids[0], ids[33_000]][:len(scores)]
        packed = PackedHits.pack(ids, numbers, found, scores)
        assert list(packed) == list(map(Hit, found, scores.tolist())) == packed[:]
        assert len(packed.data) == 12 * len(packed) == 12 * len(scores)


def test_changing_a_result_does_not_change_the_next(engine):
    first = engine.search(['revenue'], 2)
    first[0].clear()
    assert len(engine.search(['revenue'], 2)[0]) == 1


def test_many_threads_get_the_results_of_one(engine):
    words = ['revenue', 'travel', '网络', '降价'] * 10
    queries = [f'{word} {i % 7}' for i, word in enumerate(words)]
    expected = found(engine, queries, 3)
    shared = SearchEngine(engine.store, engine.retriever, cache_bytes=5 * 300)
    results = [None] * 8

    def work(slot):
        results[slot] = [found(shared, [query], 3)[0] for query in queries]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_an_engine_is_read_back_as_it_was(store, engine, tmp_path):
    index_words(store, TEXTS, CountingEncoder(), tmp_path / 'index')
    read = SearchEngine.open(tmp_path / 'index', store)
    queries = ['revenue travel', '数据中心', 'zzqqzz']
    assert read.search(queries, 3) == engine.search(queries, 3)


def test_an_index_of_other_pages_is_refused(store, tmp_path):
    index_words(store, TEXTS, CountingEncoder(), tmp_path / 'index')
    pages = list(store)
    fewer = PageStore(store.folder, pages[:-1])
    with pytest.raises(ArtifactError, match="only the index holds page 'p4'"):
        SearchEngine.open(tmp_path / 'index', fewer)
    other_text = [*pages[:-1], dataclasses.replace(pages[-1], text='other text')]
    with pytest.raises(ArtifactError, match='pages of the same ids'):
        SearchEngine.open(tmp_path / 'index', PageStore(store.folder, other_text))
    engine = index_words(fewer, TEXTS[:-1], CountingEncoder())
    with pytest.raises(ArtifactError, match="only the page store holds page 'p4'"):
        SearchEngine(store, engine.retriever)


def test_an_index_of_another_encoder_is_refused(store):
    other = CountingEncoder()
    other.fit(TEXTS[::-1])
    index = ScannIndex.build(other.encode_pages(TEXTS), store.ids, other.fingerprint)
    encoder = CountingEncoder()
    encoder.fit(TEXTS)
    with pytest.raises(ArtifactError, match='the index was made by encoder'):
        NgramVectorsRetriever(encoder, index)


def test_a_damaged_directory_is_refused(store, tmp_path):
    directory = tmp_path / 'index'
    with pytest.raises(FileNotFoundError, match='no search_engine'):
        SearchEngine.open(directory, store)
    index_words(store, TEXTS, CountingEncoder(), directory)
    manifest = json.loads((directory / 'manifest.json').read_text())
    for change, message in (({'encoder': {'kind': 'other'}}, "encoder 'other' is unknown"),
                            ({'encoder': {}}, 'kind')):
        changed = {**manifest, 'fields': {**manifest['fields'], **change}}
        (directory / 'manifest.json').write_text(json.dumps(changed))
        with pytest.raises(ArtifactError, match=message):
            SearchEngine.open(directory, store)
    [state] = directory.glob('data-*/encoder/ngram.npz')
    state.write_bytes(state.read_bytes()[:-10])
    (directory / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r'ngram\.npz: has a wrong SHA-256'):
        SearchEngine.open(directory, store)
