"""BM25 and fused rankings by hand; the engine with filters, changes, and many callers."""

import dataclasses
import math
import threading
import time

import numpy as np
import pytest

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.retrieval.call_batching import MicroBatcher
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.fusion import HybridConfig, HybridRetriever
from vrag_jax.retrieval.late_interaction.retriever import LateInteractionRetriever
from vrag_jax.retrieval.lexical.bm25 import Bm25Config, Bm25Retriever
from vrag_jax.retrieval.lexical.ngram import NgramVectorsRetriever
from vrag_jax.retrieval.lexical.ngram_encoder import NgramConfig, NgramEncoder
from vrag_jax.retrieval.single_vector.retriever import DenseRetriever

TEXTS = ['cloud revenue of Alibaba', '数据中心 network evolution', 'leisure travel in Hong Kong',
         'cloud travel cloud', 'revenue revenue growth in travel']
IDS = [f'p{i}' for i in range(1, 6)]


class HashEmbedder:
    """Counts words into 64 buckets, one vector a text, or a vector a word."""

    kind, dims, reads = 'hash', 64, 'text'

    def __init__(self, multi_vector=False, name='1'):
        self.multi_vector = multi_vector
        self.fingerprint = f'hash {multi_vector} {name}'
        self.calls = []

    def _embed(self, text):
        rows = np.zeros((len(text.split()), 64), np.float32)
        for row, word in enumerate(text.lower().split()):
            rows[row, sum(word.encode()) % 64] = 1
        if self.multi_vector:
            return rows
        total = rows.sum(0, keepdims=True)
        return total / max(np.linalg.norm(total), 1e-9)

    def embed_pages(self, pages):
        return [self._embed(page.text) for page in pages]

    def embed_queries(self, queries):
        self.calls.append(list(queries))
        return [self._embed(query) for query in queries]


def dense(texts=TEXTS, ids=IDS):
    embedder = HashEmbedder()
    return DenseRetriever.of_vectors(
        embedder, ids, np.concatenate([embedder._embed(t) for t in texts]))


def late(texts=TEXTS, ids=IDS):
    embedder = HashEmbedder(multi_vector=True)
    return LateInteractionRetriever.of_pages(
        embedder, ids, [embedder._embed(text) for text in texts])


def bm25(texts=TEXTS, ids=IDS):
    return Bm25Retriever.of_texts(ids, texts)


def ngram(texts=TEXTS, ids=IDS):
    return NgramVectorsRetriever.fit(NgramEncoder(NgramConfig(buckets=1 << 16)), ids, texts)


def hybrid(texts=TEXTS, ids=IDS):
    return HybridRetriever([bm25(texts, ids), late(texts, ids), dense(texts, ids)])


KINDS = pytest.mark.parametrize('build', [dense, late, bm25, ngram, hybrid],
                                ids=lambda build: build.__name__)
EMBEDDERS = [HashEmbedder(), HashEmbedder(multi_vector=True)]


@pytest.fixture
def store(tmp_path):
    pages = [Page(i, f'doc{n % 2}', n, f'{i}.png', 4, 3, text, {'year': 2020 + n, 'draft': n == 1})
             for n, (i, text) in enumerate(zip(IDS, TEXTS, strict=True), start=1)]
    return PageStore(tmp_path, pages)


def found(engine, query, k=5, **filters):
    return [hit.page_id for hit in engine.search([query], k, filters or None)[0]]


def test_bm25_scores_are_those_of_the_formula():
    texts = [text for text in TEXTS if '数' not in text]
    retriever = bm25(texts, IDS[:4])
    [ids], [scores] = retriever.search(['cloud travel'], 4)
    words = [[w.lower() for w in t.split() if w not in ('of', 'in')] for t in texts]
    mean = sum(map(len, words)) / 4
    expected = {}
    for page_id, page in zip(IDS, words, strict=False):
        for word in ('cloud', 'travel'):
            frequency = sum(word in other for other in words)
            idf = math.log(1 + (4 - frequency + 0.5) / (frequency + 0.5))
            count = page.count(word)
            weight = count / (count + 1.2 * (1 - 0.75 + 0.75 * len(page) / mean))
            expected[page_id] = expected.get(page_id, 0) + idf * weight
    order = sorted(expected, key=lambda i: -expected[i])
    assert ids == order
    np.testing.assert_allclose(scores, [expected[i] for i in order], rtol=1e-5)


def test_bm25_finds_cjk_words_and_nothing_where_nothing_is_shared():
    assert bm25().search(['数据中心', 'zzz', 'of the'], 3)[0] == [['p2'], [], []]
    with pytest.raises(ValueError, match='none of the 2 page texts holds a word'):
        bm25(['', '...'], IDS[:2])
    phrases = Bm25Retriever.of_texts(IDS, TEXTS, Bm25Config(phrases=True))
    assert phrases.search(['hong kong'], 1)[1][0] > bm25().search(['hong kong'], 1)[1][0]


class Ranking:
    """A retriever of a fixed order; equal scores where the order says `=`."""

    kind, fingerprint, reads = 'fixed', 'fixed', frozenset({'text'})

    def __init__(self, order, ids):
        self.ids = tuple(ids)
        groups = order.split() if ' ' in order else order
        self.scores = {i: -float(n) for n, group in enumerate(groups) for i in group.split('=')}

    def search(self, queries, k, allowed=None):
        fit = set(self.ids) if allowed is None else {
            i for i, fits in zip(self.ids, allowed, strict=True) if fits}
        ids = sorted(fit & set(self.scores), key=lambda i: (-self.scores[i], self.ids.index(i)))[:k]
        scores = np.array([self.scores[i] for i in ids], np.float32)
        return [ids] * len(queries), [scores] * len(queries)


def test_fused_scores_are_those_of_the_formula():
    config = HybridConfig(weights=(2, 1), constant=10)
    fused = HybridRetriever([Ranking('abc', 'abcd'), Ranking('cdb', 'dcba')], config)
    [ids], [scores] = fused.search(['q'], 4)
    expected = {'a': 2 / 11, 'b': 2 / 12 + 1 / 13, 'c': 2 / 13 + 1 / 11, 'd': 1 / 12}
    assert ids == sorted(expected, key=lambda i: -expected[i]) == ['c', 'b', 'a', 'd']
    np.testing.assert_allclose(scores, [expected[i] for i in ids], rtol=1e-6)
    # Filters are in the order of the first; the second has another.
    assert fused.search(['q'], 4, np.array([True, False, False, True]))[0] == [['a', 'd']]
    with pytest.raises(ValueError, match="holds page 'd'"):
        HybridRetriever([Ranking('a', 'abc'), Ranking('a', 'abcd')])
    with pytest.raises(ValueError, match='3 weights for 2'):
        HybridRetriever(fused.retrievers, HybridConfig(weights=(1, 1, 1)))


def test_pages_of_equal_score_share_their_mean_rank():
    config = HybridConfig(constant=10)
    expected = {'a': 1 / 11 + 1 / 13, 'b': 1 / 13 + 1 / 11.5, 'c': 1 / 13 + 1 / 11.5,
                'd': 1 / 13 + 1 / 14}
    for ids in ('abcd', 'dcba', 'cadb'):  # Whatever the order of the corpus.
        fused = HybridRetriever([Ranking('a b=c=d', ids), Ranking('b=c a d', ids)], config)
        [found], [scores] = fused.search(['q'], 4)
        assert found == ['a', *sorted('bc', key=ids.index), 'd']
        np.testing.assert_allclose(scores, [expected[i] for i in found], rtol=1e-6)


@pytest.mark.parametrize('lexical', [ngram, bm25])
def test_pages_that_share_no_term_gain_nothing_in_a_fusion(lexical):
    # The second best page of the model has no word of the query, nor have 20 others.
    texts = [f'nothing here {n}' for n in range(20)] + ['ship harbour quay', 'docks zanzibar']
    ids = [f'p{n}' for n in range(22)]
    model = Ranking(['p21', 'p20', *ids[:20]], ids)
    fused = HybridRetriever([lexical(texts, ids), model], HybridConfig((1.0, 0.2), 20))
    assert lexical(texts, ids).search(['docks of zanzibar'], 22)[0] == [['p21']]
    assert fused.search(['docks of zanzibar'], 3)[0] == [['p21', 'p20', 'p0']]


@KINDS
def test_each_kind_finds_filters_and_is_read_back(build, store, tmp_path):
    engine = SearchEngine(store, build())
    engine.save(tmp_path / 'index')
    read = SearchEngine.open(tmp_path / 'index', store, EMBEDDERS)
    assert read.retriever.kind == engine.retriever.kind
    assert read.retriever.fingerprint == engine.retriever.fingerprint
    for state in (engine, read):
        assert found(state, 'alibaba cloud revenue', 1) == ['p1']
        assert found(state, 'travel', document='doc1', page=[3, 4])[0] == 'p3'
        assert set(found(state, 'travel cloud', year=[2023, 2024])) <= {'p3', 'p4'}
        assert found(state, 'travel', year=1999) == []
        assert 'p1' in found(state, 'revenue', draft=True) and 'p1' not in found(
            state, 'revenue', draft=[False])
        assert found(state, 'revenue', page=True) == []  # No number is a boolean.
        assert state.search(['revenue', 'travel'], 3) == [
            state.search([query], 3)[0] for query in ('revenue', 'travel')]
    with pytest.raises(ValueError, match="filter 'page'"):
        engine.search(['x'], 1, {'page': None})


@KINDS
def test_pages_are_added_and_deleted_at_once(build, store):
    engine = SearchEngine(store, build())
    assert 'p1' in found(engine, 'alibaba cloud')
    new = Page('p6', 'new', 1, 'p6.png', 4, 3, 'quantum xylophone', {'year': 1999})
    engine.add([new])
    assert found(engine, 'quantum xylophone', 1) == ['p6']
    assert found(engine, 'quantum xylophone', year=1999) == ['p6']
    engine.delete(['p1'])
    assert 'p1' not in found(engine, 'alibaba cloud') and 'p1' not in engine.store
    texts = [*TEXTS[1:], 'quantum xylophone']
    fresh = build(texts, [*IDS[1:], 'p6'])
    assert engine.retriever.ids == fresh.ids
    for query in ('cloud travel', 'revenue', 'evolution'):
        ids, scores = fresh.search([query], 5)
        again, again_scores = engine.retriever.search([query], 5)
        assert again == ids
        np.testing.assert_allclose(again_scores[0], scores[0], rtol=1e-5)


def test_changes_that_cannot_be_leave_the_engine_as_it_is(store):
    engine = SearchEngine(store, hybrid())
    page = dataclasses.replace(store['p1'], page_id='p9', text=None)
    for change, message in (
            (lambda: engine.add([store['p1']]), 'different ids'),
            (lambda: engine.add([page]), "text of page 'p9' is not known"),
            (lambda: engine.add([page], ['a', 'b']), '2 texts for 1 pages'),
            (lambda: engine.delete(['p9']), "no page 'p9'"),
            (lambda: engine.delete(IDS), 'no page would be left')):
        with pytest.raises(ValueError, match=message):
            change()
        assert engine.retriever.ids == tuple(IDS) == engine.store.ids
    engine.add([page], ['zebra'])
    assert found(engine, 'zebra', 1) == ['p9']


def test_an_index_needs_the_embedder_that_made_it(store, tmp_path):
    SearchEngine(store, dense()).save(tmp_path)
    with pytest.raises(ArtifactError, match='embedder hash hash False 1.*given: hash hash False 2'):
        SearchEngine.open(tmp_path, store, [HashEmbedder(name='2')])
    with pytest.raises(ValueError, match='several vectors'):
        DenseRetriever.of_vectors(HashEmbedder(multi_vector=True), ['a'], np.ones((1, 64)))
    with pytest.raises(ValueError, match='one vector a page'):
        LateInteractionRetriever.of_pages(HashEmbedder(), ['a'], [np.ones((1, 64))])


def test_a_filter_on_a_field_that_no_page_has_is_refused(store):
    engine = SearchEngine(store, dense())
    with pytest.raises(ValueError, match="filter 'years': no page has such a field.*'year'"):
        engine.search(['travel'], 2, {'years': 2024})
    assert engine.search(['travel'], 2, {'year': 1066}) == [[]]


def test_the_cache_knows_filters_and_forgets_when_pages_change(store):
    engine = SearchEngine(store, dense())
    calls = engine.retriever.embedder.calls
    for filters in (None, {'year': 2024}, {'year': [2024]}, {'year': [2024, 2022]},
                    {'year': [2022, 2024]}, None):
        engine.search(['travel'], 2, filters)
    assert len(calls) == 3
    engine.delete(['p5'])
    engine.search(['travel'], 2)
    assert len(calls) == 4


class SlowEmbedder(HashEmbedder):
    def embed_queries(self, queries):
        time.sleep(0.05)
        return super().embed_queries(queries)


def test_callers_at_the_same_time_share_a_batch(store):
    embedder = SlowEmbedder()
    engine = SearchEngine(store, DenseRetriever(embedder, dense().index))
    expected = {f'travel w{n}': found(SearchEngine(store, dense()), f'travel w{n}', 2)
                for n in range(24)}
    results = {}

    def work(query):
        results[query] = found(engine, query, 2)

    threads = [threading.Thread(target=work, args=(query,)) for query in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected
    assert len(embedder.calls) <= 4 and sum(map(len, embedder.calls)) == 24
    assert len(embedder.calls[0]) == 1  # The first did not wait for others.


def test_a_request_at_fault_raises_alone():
    started, go = threading.Event(), threading.Event()

    def answer(requests):
        started.set()
        go.wait(5)
        if -1 in requests:
            raise ValueError('minus one')
        return [2 * request for request in requests]

    batcher, results = MicroBatcher(answer, most=8), {}

    def work(request):
        try:
            results[request] = batcher(request)
        except ValueError as error:
            results[request] = str(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, -1, *range(1, 20))]
    threads[0].start()
    started.wait(5)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert results == {-1: 'minus one', **{n: 2 * n for n in range(20)}}
    assert batcher(5) == 10
