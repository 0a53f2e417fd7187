"""Cross-validation of weights: chosen on other documents than they are measured on."""

import json

import numpy as np
import pytest

from benchmarks.evidence import load_evidence
from benchmarks.fusion import NAMES, Remembered, Setting, choose, settings
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.data.records import Question
from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever


class Fixed:
    """Finds the page that it is told, then all others."""

    reads = frozenset({'text'})

    def __init__(self, kind, ids, best):
        self.kind, self.fingerprint, self.ids, self.best = kind, kind, tuple(ids), best
        self.searched = []

    def search(self, queries, k, allowed=None):
        self.searched += queries
        found = []
        for query in queries:
            ids = [i for row, i in enumerate(self.ids) if allowed is None or allowed[row]]
            ids.sort(key=lambda i, query=query: i != self.best[query])
            found.append(ids[:k])
        return found, [np.arange(len(ids), 0, -1).astype(np.float32) for ids in found]


@pytest.fixture
def store(tmp_path):
    return PageStore(tmp_path, [Page(f'd{d}_{n}', f'd{d}', n, 'p.png', 8, 6, f'word{n}')
                                for d in range(6) for n in range(1, 8)])


def test_settings_are_all_combinations_but_for_constants_of_single_parts():
    assert list(settings(((1.0,), (0.0, 0.5)), (20.0, 60.0))) == [
        Setting((1.0, 0.0), 20.0), Setting((1.0, 0.5), 20.0), Setting((1.0, 0.5), 60.0)]
    assert list(settings(((0.0,), (0.0,)), (20.0,))) == []


def test_queries_are_searched_once(store):
    fixed = Fixed('a', store.ids, {'q': 'd0_3', 'r': 'd1_1'})
    known = Remembered(fixed)
    mask = np.array([page_id.startswith('d0') for page_id in store.ids])
    first = known.search(['q', 'r', 'q'], 2)
    assert [ids[0] for ids in first[0]] == ['d0_3', 'd1_1', 'd0_3']
    again = known.search(['r', 'q'], 2)
    np.testing.assert_array_equal(again[1][0], first[1][1])
    assert fixed.searched == ['q', 'r']
    assert known.search(['r'], 9, mask)[0][0] == [f'd0_{n}' for n in range(1, 8)]


def test_the_part_that_is_right_is_chosen_and_figures_are_of_other_documents(store, tmp_path):
    queries = {f'query {d}': f'd{d}_{d + 1}' for d in range(6)}
    questions = [Question(str(n), query, '', page_ids=(page,))
                 for n, (query, page) in enumerate(queries.items())]
    file = tmp_path / 'evidence.json'
    file.write_text(json.dumps([{'doc_id': f'd{d}.pdf', 'domain': f'domain{d % 2}', 'questions': [
        {'question': f'query {d}', 'type': '[]', 'pages': [d + 1], 'boxes': []}]}
        for d in range(6)]))
    right, wrong = Fixed('right', store.ids, queries), Fixed(
        'wrong', store.ids, dict.fromkeys(queries, 'd5_7'))
    chosen = choose(store, [wrong, right], questions, load_evidence(file, store),
                    {str(n): f'd{n}' for n in range(6)},
                    list(settings(((0.0, 1.0), (0.0, 1.0)), (20.0,))), folds=3)
    assert chosen.setting == Setting((0.0, 1.0), 20.0) and set(chosen.folds) == {chosen.setting}
    assert chosen.figures == chosen.on_all == dict.fromkeys(NAMES, 1.0)
    # What helps in one document alone is chosen for others, and costs them.
    half = dict(queries) | {'query 0': 'd5_7'}
    other = Fixed('other', store.ids, half)
    mixed = choose(store, [other, Fixed('one', store.ids, {
        query: queries[query] if query == 'query 0' else 'd5_7' for query in queries})],
        questions, load_evidence(file, store), {str(n): f'd{n}' for n in range(6)},
        list(settings(((0.0, 1.0), (0.0, 1.0)), (20.0,)))[:2], folds=6)
    assert mixed.setting == Setting((1.0, 0.0), 20.0)
    assert mixed.figures['hit@1'] == pytest.approx(5 / 6)


def test_one_part_alone_is_not_fused(store):
    bm25 = Bm25Retriever.of_texts(store.ids, [page.text for page in store])
    assert Setting((1.0, 0.0), 20.0).fuse([bm25, bm25]) is bm25
    fused = Setting((1.0, 0.5), 20.0).fuse([bm25, bm25])
    assert fused.kind == 'hybrid' and fused.config.weights == (1.0, 0.5)
