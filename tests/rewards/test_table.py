"""Rewards by name: their weighted sum, its gate, and one that is added from outside."""

import numpy as np
import pytest

from tests.rewards import brevity  # noqa: F401 (registers a reward)
from vrag_jax.actions.grammar import parse_action
from vrag_jax.config import ConfigError, parse
from vrag_jax.data.records import Question
from vrag_jax.rewards.judge import RuleJudge
from vrag_jax.rewards.registry import REWARDS
from vrag_jax.rewards.table import RewardConfig, combine
from vrag_jax.rollout.scoring import score
from vrag_jax.rollout.trajectory import Trajectory, Turn
from vrag_jax.run.run_config import RunConfig
from vrag_jax.training.rollouts import rollout_metrics


def test_sum_by_hand():
    rewards = combine(RewardConfig(), {'retrieval': 0.5, 'answer': 1.0, 'pattern': 1.0})
    assert rewards == {
        'retrieval': 0.5, 'answer': 1.0, 'pattern': 1.0,
        'total': pytest.approx(0.2 * 0.5 + 0.7 + 0.1)}


def test_the_gate_takes_everything_where_its_reward_is_not_one():
    parts = {'retrieval': 1.0, 'answer': 1.0, 'pattern': 0.0}
    assert combine(RewardConfig(gate='pattern'), parts)['total'] == 0.0
    assert combine(RewardConfig(gate=''), parts)['total'] == pytest.approx(0.9)
    by_retrieval = RewardConfig(gate='retrieval')
    assert combine(by_retrieval, parts)['total'] == pytest.approx(0.9)
    assert combine(by_retrieval, parts | {'retrieval': 0.99})['total'] == 0.0


def test_the_gate_holds_without_a_weight():
    config = RewardConfig(weights={'retrieval': 0.3, 'answer': 0.7})
    assert combine(config, {'retrieval': 1.0, 'answer': 1.0, 'pattern': 0.0})['total'] == 0.0
    assert combine(config, {'retrieval': 1.0, 'answer': 0.0, 'pattern': 1.0})['total'] == 0.3


@pytest.mark.parametrize('name, value', [
    ('retrieval', 1.63), ('answer', float('nan')), ('pattern', -1.0)])
def test_rewards_outside_the_unit_interval_are_refused(name, value):
    with pytest.raises(ValueError, match=f'the {name} reward'):
        combine(RewardConfig(), {'retrieval': 0.0, 'answer': 0.0, 'pattern': 0.0, name: value})


@pytest.mark.parametrize('reward, message', [
    ({'weights': {'answer': 0.7, 'retrieval': 0.2, 'pattern': 0.2}}, 'weights must sum to 1, got'),
    ({'weights': {'answer': 0.7, 'retrieval': 0.2, 'pattern': 0.09}}, 'weights must sum to 1'),
    ({'weights': {}}, 'weights must sum to 1'),
    ({'weights': {'answer': 1.2, 'retrieval': -0.2}}, r'weights.answer must be in \[0, 1\]'),
    ({'weights': {'answer': float('nan')}}, r'weights.answer must be in \[0, 1\]'),
    ({'weights': {'answer': 1.0, 'style': 0.0}}, "reward must be one of .*'answer'.*got 'style'"),
    ({'weights': {'answer': 1.0}, 'gate': 'shape'}, "reward must be one of .*got 'shape'"),
    ({'report': ('speed',)}, "reward must be one of .*got 'speed'")])
def test_tables_that_cannot_work(reward, message):
    with pytest.raises(ConfigError, match='config.reward: ' + message):
        parse(RunConfig, {'task': 'grpo', 'reward': reward})


@pytest.mark.parametrize('old, new', [
    ('alpha', 'weights.retrieval'), ('beta', 'weights.answer'), ('gamma', 'weights.pattern'),
    ('pattern_gate', "gate \\('pattern', or '' for none\\)")])
def test_fields_of_before_are_refused_with_their_new_names(old, new):
    message = f'^config.reward.{old}: is called config.reward.{new} now'
    with pytest.raises(ConfigError, match=message):
        parse(RunConfig, {'task': 'grpo', 'reward': {old: 0.5}})


def played(query: str, answer: str) -> Trajectory:
    """Searches, sees pages b and a, and answers; page a and the answer 412 were right."""
    turns = [f'<think>t</think><search>{query}</search>',
             f'<think>t</think><answer>{answer}</answer>']
    none = np.zeros(2, np.int32)
    return Trajectory(
        question=Question(uid='q', query='How many?', answer='412', page_ids=('a',)), prompt='',
        tokens=none, loss_mask=none > 0, position_ids=np.zeros((3, 2), np.int32),
        logprobs=np.zeros(2, np.float32), image_index=none, images=[], processed=[],
        turns=[Turn(text, parse_action(text)) for text in turns], answer=answer, finished=True,
        truncated=False, retrieved=['b', 'a'])


def test_a_reward_from_outside_is_named_in_a_config_counted_and_reported():
    config = parse(RunConfig, {'task': 'grpo', 'reward': {
        'weights': {'answer': 0.6, 'brevity': 0.4}, 'report': ()}}).reward
    trajectories = [played('sales', '412'), played('sales', 'four hundred')]
    score(trajectories, config, RuleJudge())
    assert [t.rewards for t in trajectories] == [
        {'answer': 1.0, 'brevity': 1.0, 'pattern': 1.0, 'total': pytest.approx(1.0)},
        {'answer': 0.0, 'brevity': 0.5, 'pattern': 1.0, 'total': pytest.approx(0.2)}]
    metrics = rollout_metrics(trajectories, ())
    assert {name: value for name, value in metrics.items()
            if name in ('reward', 'accuracy') or name.startswith('reward_')} == pytest.approx(
                {'reward': 0.6, 'accuracy': 0.5, 'reward_brevity': 0.75, 'reward_pattern': 1.0})


def test_what_has_no_weight_and_is_not_asked_for_is_not_worked_out(monkeypatch):
    sizes = []

    def served(trajectories):
        sizes.append(len(trajectories))
        return [0.25] * len(trajectories)

    monkeypatch.setitem(REWARDS, 'served', served)
    trajectories = [played('sales', '412')] * 3
    score(trajectories, RewardConfig(), RuleJudge())
    assert trajectories[0].rewards.keys() == {'answer', 'retrieval', 'pattern', 'total'}
    score(trajectories, RewardConfig({'answer': 1.0, 'served': 0.0}, gate=''), RuleJudge())
    assert not sizes
    # All at once, where it is asked for.
    score(trajectories, RewardConfig({'answer': 1.0}, '', ('served',)), RuleJudge())
    assert sizes == [3]
    assert trajectories[0].rewards == {'answer': 1.0, 'served': 0.25, 'total': 1.0}


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="reward: 'brevity' is taken"):
        REWARDS.add('brevity')(lambda trajectories: [])
