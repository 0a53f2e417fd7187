"""The weighted sum of the parts of the reward."""

import pytest

from vrag_jax.rewards.combine import RewardWeights, combine


def test_sum_by_hand():
    rewards = combine(RewardWeights(0.2, 0.7, 0.1), retrieval=0.5, answer=1.0, pattern=1.0)
    assert rewards == {
        'retrieval': 0.5, 'answer': 1.0, 'pattern': 1.0,
        'total': pytest.approx(0.2 * 0.5 + 0.7 + 0.1)}


def test_gate_takes_everything_where_the_pattern_fails():
    parts = dict(retrieval=1.0, answer=1.0, pattern=0.0)
    assert combine(RewardWeights(0.2, 0.7, 0.1, pattern_gate=True), **parts)['total'] == 0.0
    ungated = combine(RewardWeights(0.2, 0.7, 0.1, pattern_gate=False), **parts)
    assert ungated['total'] == pytest.approx(0.9)


def test_gate_holds_without_a_weight_on_the_pattern():
    weights = RewardWeights(0.3, 0.7, 0.0)
    assert combine(weights, retrieval=1.0, answer=1.0, pattern=0.0)['total'] == 0.0
    assert combine(weights, retrieval=1.0, answer=0.0, pattern=1.0)['total'] == 0.3


@pytest.mark.parametrize('weights, message', [
    ((0.2, 0.7, 0.2), 'alpha \\+ beta \\+ gamma'), ((0.2, 0.7, 0.09), 'alpha \\+ beta \\+ gamma'),
    ((1.2, -0.2, 0.0), 'alpha'), ((0.5, -0.1, 0.6), 'beta'), ((0.0, 0.0, float('nan')), 'gamma')])
def test_weights_that_do_not_sum_to_one_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        RewardWeights(*weights)


@pytest.mark.parametrize('name, value', [
    ('retrieval', 1.63), ('answer', float('nan')), ('pattern', -1.0)])
def test_parts_outside_the_unit_interval_are_refused(name, value):
    parts = {'retrieval': 0.0, 'answer': 0.0, 'pattern': 0.0, name: value}
    with pytest.raises(ValueError, match=f'the {name} reward'):
        combine(RewardWeights(0.2, 0.7, 0.1), **parts)
