"""Retrieval figures against values worked out by hand."""

import dataclasses
import math

import pytest

from vrag_jax.evaluation.retrieval_quality import evaluate_retrieval
from vrag_jax.retrieval.hits import Hit


@dataclasses.dataclass(frozen=True)
class Asked:
    query: str
    page_ids: tuple[str, ...]


class FixedEngine:
    """Answers a query 'a b c' with the pages a, b and c."""

    def search(self, queries, k):
        return [[Hit(page, 1 / rank) for rank, page in enumerate(query.split()[:k], start=1)]
                for query in queries]


def test_figures_of_two_questions():
    questions = [Asked('a b c d', ('a', 'c')),  # one of two pages first, the other third
                 Asked('d e f g', ('e',)),      # the only page is second
                 Asked('', ('a',))]             # nothing was found
    result = evaluate_retrieval(FixedEngine(), questions, ks=(1, 3))
    two_pages = 1 + 1 / math.log2(3)  # gain of the best order of two pages
    assert result == pytest.approx({
        'recall@1': (1 / 2 + 0 + 0) / 3, 'hit@1': 1 / 3, 'ndcg@1': 1 / two_pages / 3,
        'recall@3': (1 + 1 + 0) / 3, 'hit@3': 2 / 3,
        'ndcg@3': ((1 + 1 / math.log2(4)) / two_pages + 1 / math.log2(3) + 0) / 3})


@pytest.mark.parametrize('questions, ks', [
    ([], (1,)), ([Asked('a', ('a',))], ()), ([Asked('a', ('a',))], (0, 1)),
    ([Asked('a', ())], (1,))])
def test_what_cannot_be_evaluated_is_refused(questions, ks):
    with pytest.raises(ValueError, match='need questions|no page answers'):
        evaluate_retrieval(FixedEngine(), questions, ks)
