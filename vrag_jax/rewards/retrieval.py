"""Retrieval reward: were the relevant pages found, and early?"""

import math
from collections.abc import Collection, Iterable

from vrag_jax.rewards.registry import ScoredEpisode, reward


@reward('retrieval')
def retrieval(trajectory: ScoredEpisode) -> float:
    """NDCG of the pages that were shown; 0 where the question names no page."""
    return ndcg(trajectory.retrieved, trajectory.question.page_ids)


def ndcg(retrieved: Iterable[str], relevant: Collection[str]) -> float:
    """Normalised discounted cumulative gain of pages in the order of retrieval.

    VRAG-RL's r_Ret: DCG / IDCG with the gain (2^s - 1) / log2(i + 1) at rank i
    from 1, s = 1 for a relevant page and 0 otherwise. Unlike the public code a
    page counts only where it is met first, so the value never exceeds 1 and a
    page retrieved twice takes no rank.

    Args:
      retrieved: page ids in order.
      relevant: page ids that hold the answer.

    Returns:
      A value in [0, 1]; 0 where nothing is relevant.
    """
    targets = set(relevant)
    if not targets:
        return 0.0
    gains = [page in targets for page in dict.fromkeys(retrieved)]
    return _dcg(gains) / _dcg([True] * len(targets))


def recall(retrieved: Iterable[str], relevant: Collection[str]) -> float:
    """Share of the relevant pages that were retrieved; 0 where nothing is relevant.

    Args:
      retrieved: page ids; cut them to k for recall@k.
      relevant: page ids that hold the answer.
    """
    targets = set(relevant)
    return len(targets & set(retrieved)) / len(targets) if targets else 0.0


def _dcg(gains: Iterable[bool]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
