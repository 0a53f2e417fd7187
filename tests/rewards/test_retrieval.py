"""NDCG and recall against values worked out by hand and the public code's formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrag_jax.rewards.retrieval import ndcg, recall

PAGES = st.lists(st.sampled_from('abcdefg'), max_size=8)


def ndcg_reference(retrieved, relevant):
    """NDCG as the paper's public code has it: duplicates count again."""
    gains = [2 ** (page in relevant) - 1 for page in retrieved]
    ideal = sum(1 / math.log2(i + 2) for i in range(len(relevant)))
    return sum(gain / math.log2(i + 2) for i, gain in enumerate(gains)) / ideal


@pytest.mark.parametrize('retrieved, relevant, expected', [
    (['a'], ['a'], 1.0),
    ([], ['a'], 0.0),
    (['b'], ['a'], 0.0),
    # Rank 2: 1 / log2(3).
    (['b', 'a'], ['a'], 0.6309297535714575),
    # Ranks 1 and 3 of 2: (1 + 1/2) / (1 + 1/log2(3)).
    (['a', 'x', 'b'], ['a', 'b'], 1.5 / 1.6309297535714575),
    # One of two: 1 / (1 + 1/log2(3)).
    (['a'], ['a', 'b'], 0.6131471927654584),
    (['b', 'a'], ['a', 'b'], 1.0),
    # Junk after the last relevant page costs nothing.
    (['a', 'x', 'y'], ['a'], 1.0),
    # A page met again takes no rank and earns nothing.
    (['x', 'x', 'a', 'a'], ['a'], 0.6309297535714575),
    (['a'], [], 0.0),
    (['a'], ['a', 'a'], 1.0),
])
def test_ndcg_by_hand(retrieved, relevant, expected):
    assert ndcg(retrieved, relevant) == pytest.approx(expected)


def test_duplicates_took_the_public_code_above_one():
    retrieved = ['a', 'a']
    assert ndcg_reference(retrieved, ['a']) == pytest.approx(1.63, abs=1e-2)
    assert ndcg(retrieved, ['a']) == 1.0


@given(PAGES, PAGES)
def test_ndcg_equals_the_public_code_without_duplicates(retrieved, relevant):
    unique, targets = list(dict.fromkeys(retrieved)), set(relevant)
    value = ndcg(retrieved, relevant)
    assert 0 <= value <= 1
    assert value == pytest.approx(ndcg_reference(unique, targets) if targets else 0)


@pytest.mark.parametrize('retrieved, relevant, expected', [
    (['a', 'x'], ['a', 'b'], 0.5), (['b', 'a', 'a'], ['a', 'b'], 1.0), ([], ['a'], 0.0),
    (['a'], [], 0.0)])
def test_recall_by_hand(retrieved, relevant, expected):
    assert recall(retrieved, relevant) == expected
