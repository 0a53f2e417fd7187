"""Retrieval quality of a search engine on questions whose pages are known."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from vrag_jax.retrieval.page_search import PageSearch
from vrag_jax.rewards.retrieval import ndcg, recall


class PageQuestion(Protocol):
    """What is needed of a question record."""

    @property
    def query(self) -> str:
        """The question."""

    @property
    def page_ids(self) -> Sequence[str]:
        """Ids of the pages that hold the answer."""


def evaluate_retrieval(engine: PageSearch, questions: Iterable[PageQuestion],
                       ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Searches with the questions themselves and compares with their pages.

    Args:
      engine: finds pages.
      questions: each with at least one page.
      ks: numbers of hits to look at.

    Returns:
      Means over the questions, for each k: `recall@k`, the share of a question's
      pages among the first k hits; `hit@k`, whether any of them is; `ndcg@k`.

    Raises:
      ValueError: if there is no question, one has no pages, or a k is not positive.
    """
    questions = list(questions)
    if not questions or not ks or min(ks) < 1:
        raise ValueError(f'need questions and positive ks, got {len(questions)} and {tuple(ks)}')
    for question in questions:
        if not question.page_ids:
            raise ValueError(f'no page answers the question {question.query!r}')
    results = engine.search([question.query for question in questions], max(ks))
    totals: dict[str, float] = {}
    for question, hits in zip(questions, results, strict=True):
        for k in ks:
            found = [hit.page_id for hit in hits[:k]]
            share = recall(found, question.page_ids)
            scores = {'recall': share, 'hit': float(share > 0),
                      'ndcg': ndcg(found, question.page_ids)}
            for name, score in scores.items():
                totals[f'{name}@{k}'] = totals.get(f'{name}@{k}', 0.0) + score
    return {name: total / len(questions) for name, total in totals.items()}
