"""Figures against values worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from vrag_jax.evaluation.summary import is_correct, judged, mean, score_of, share, summarize


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


def scored(trajectory, answer_reward, **changes):
    rewards = trajectory.rewards | {'answer': answer_reward}
    return dataclasses.replace(trajectory, rewards=rewards, **changes)


def test_the_judge_says_what_is_right_not_exact_match(zooming, silent):
    assert is_correct(zooming) and not is_correct(silent)
    assert is_correct(scored(zooming, 1.0, answer='They were 472 people in all.'))
    assert not is_correct(scored(zooming, 0.0))
    assert is_correct(scored(zooming, 0.5)) and not is_correct(scored(zooming, 0.4))


def test_what_was_not_scored_has_no_figures(zooming):
    with pytest.raises(ValueError, match='question zooming: the trajectory has no scores'):
        judged(dataclasses.replace(zooming, rewards={}))


def test_accuracy_is_the_judged_score_beside_what_compares_words(zooming, hasty, silent):
    sentence = 'They were 472 people.'
    summary = summarize([scored(zooming, 1.0, answer=sentence), hasty, silent])
    assert summary['accuracy']['value'] == pytest.approx(1 / 3)
    assert summary['exact_match']['value'] == 0.0
    assert summary['f1']['value'] == pytest.approx(2 / (4 + 1) / 3)  # One word of four.
    assert summary['by_source_type']['Chart']['value'] == 1.0
    # Against an alias, after normalisation.
    question = dataclasses.replace(zooming.question, answer='four', aliases=('472',))
    summary = summarize([dataclasses.replace(zooming, question=question, answer=' 472. ')])
    assert [summary[name]['value'] for name in ('exact_match', 'anls', 'f1')] == [1, 1, 1]


def test_graded_scores_have_a_bootstrap_interval(zooming):
    values = [0.0, 1.0, 0.75, 0.5]
    assert score_of(values) == mean(values)
    assert score_of([0.0, 1.0]) == share([False, True])
    summary = summarize([scored(zooming, value) for value in values])
    assert summary['accuracy'] == summary['by_query_type']['Single-Hop']
    assert summary['accuracy']['value'] == pytest.approx(0.5625)


def test_answers_without_a_verdict_are_counted(zooming, hasty):
    failed = dataclasses.replace(hasty, judge_failed=True)
    assert summarize([zooming, hasty])['judge_failures'] == 0
    assert summarize([zooming, failed, failed])['judge_failures'] == 2


def test_summary_by_hand(zooming, hasty, silent):
    summary = summarize([zooming, hasty, silent])
    values = {name: figure['value'] for name, figure in summary.items()
              if isinstance(figure, dict) and 'value' in figure}
    # The hasty trajectory finds one of two pages, at rank 1: 1 / (1 + 1 / log2(3)).
    half_found = 1 / (1 + 1 / math.log2(3))
    assert values == {
        'accuracy': pytest.approx(1 / 3),
        'exact_match': pytest.approx(1 / 3),
        'f1': pytest.approx(1 / 3),
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


def test_summary_is_json(zooming):
    summary = summarize([zooming])
    assert json.loads(json.dumps(summary)) == summary
