"""Figures against values worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from vrag_jax.evaluation.metrics import is_correct, mean, share, summarize


@pytest.mark.parametrize('hits,n', [(0, 10), (3, 10), (170, 200), (200, 200), (1, 1)])
def test_share_has_the_wilson_interval_of_scipy(hits, n):
    estimate = share([True] * hits + [False] * (n - hits))
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method='wilson')
    assert estimate.value == hits / n
    assert estimate.n == n
    np.testing.assert_allclose((estimate.low, estimate.high), expected, atol=1e-6)
    assert estimate.low <= estimate.value <= estimate.high


def test_mean_has_an_interval_close_to_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    estimate = mean(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.03)
    assert mean(values) == estimate  # seeded


def test_nothing_has_no_figures():
    for function in (share, mean, summarize):
        with pytest.raises(ValueError):
            function([])


def test_an_answer_is_right_after_normalisation_or_by_an_alias(zooming, silent):
    assert is_correct(zooming)
    assert is_correct(dataclasses.replace(zooming, answer=' 472. '))
    assert not is_correct(dataclasses.replace(zooming, answer='47'))
    assert not is_correct(silent)
    question = dataclasses.replace(zooming.question, answer='472 people', aliases=('four', '472'))
    assert is_correct(dataclasses.replace(zooming, question=question))


def test_summary_by_hand(zooming, hasty, silent):
    summary = summarize([zooming, hasty, silent])
    values = {name: figure['value'] for name, figure in summary.items()
              if isinstance(figure, dict) and 'value' in figure}
    # The hasty trajectory finds one of two pages, at rank 1: 1 / (1 + 1 / log2(3)).
    half_found = 1 / (1 + 1 / math.log2(3))
    assert values == {
        'accuracy': pytest.approx(1 / 3),
        'anls': pytest.approx((1 + 2 / 3 + 0) / 3),  # 478 for 472: one edit in three
        'ndcg': pytest.approx((1 + half_found + 0) / 3),
        'recall': pytest.approx((1 + 0.5 + 0) / 3),
        'invalid': pytest.approx(1 / 7),
        'finished': pytest.approx(2 / 3),
        'zoomed': pytest.approx(1 / 3),
        'turns': pytest.approx((3 + 3 + 1) / 3),
        'reward': pytest.approx(1 / 3),
    }
    assert summary['n'] == 3
    assert summary['invalid']['n'] == 7


def test_accuracy_by_kind_counts_a_question_in_each_of_its_kinds(zooming, hasty, silent):
    summary = summarize([zooming, hasty, silent])
    by_source = {kind: (f['value'], f['n']) for kind, f in summary['by_source_type'].items()}
    by_query = {kind: (f['value'], f['n']) for kind, f in summary['by_query_type'].items()}
    assert by_source == {'Chart': (1.0, 1), 'Table': (0.0, 1), 'Text': (0.0, 2)}
    assert by_query == {'Multi-Hop': (0.0, 1), 'Single-Hop': (0.5, 2)}


def test_without_rewards_there_is_no_reward(zooming):
    assert 'reward' not in summarize([dataclasses.replace(zooming, rewards={})])


def test_summary_is_json(zooming):
    summary = summarize([zooming])
    assert json.loads(json.dumps(summary)) == summary
