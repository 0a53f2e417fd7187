"""Groups that teach nothing are replaced, some trajectories masked, rollouts run ahead."""

import gc
import threading
import types
import weakref
from concurrent.futures import CancelledError

import jax.numpy as jnp
import numpy as np
import pytest

from vrag_jax.actions.grammar import parse_action
from vrag_jax.actions.registry import get_actions
from vrag_jax.data.records import Question
from vrag_jax.learner.losses import GrpoLossConfig
from vrag_jax.rewards.table import RewardConfig
from vrag_jax.rollout.trajectory import Trajectory, Turn
from vrag_jax.training import grpo, rollouts
from vrag_jax.training.overlap import RolloutAhead
from vrag_jax.training.phase_configs import GrpoConfig
from vrag_jax.training.rollouts import Collector, Rollout

SIZE = 3
QUESTIONS = [Question(uid=f'q{n}', query='?', answer='1') for n in range(12)]
# Of these questions all trajectories of a group get the same reward.
FLAT = {'q0', 'q2', 'q3', 'q7'}
PICTURES: list[weakref.ref] = []


class Picture:
    """Is big."""


def trajectory(question, reward=0.0, finished=True, truncated=False, length=6, images=()):
    """A trajectory with the last half of its tokens sampled."""
    mask = np.arange(length) >= length // 2
    return Trajectory(
        question=question, prompt='', tokens=np.arange(length, dtype=np.int32), loss_mask=mask,
        position_ids=np.zeros((3, length), np.int32), logprobs=np.where(mask, -1.0, 0.0),
        image_index=np.full(length, -1, np.int32), images=list(images), processed=[],
        turns=[Turn('', parse_action('<answer>1</answer>'))], answer='1', finished=finished,
        truncated=truncated, retrieved=[], rewards={
            'total': reward, 'answer': reward, 'retrieval': 0.0, 'pattern': 1.0})


@pytest.fixture
def space(monkeypatch):
    """Returns a function that makes a collector, and the calls that it makes."""
    calls = []

    def run_policy(world, sampler, features, params, questions, sampling, seeds, cancelled):
        assert not cancelled()
        calls.append((params, [q.uid for q in questions], list(seeds)))
        pictures = [Picture() for _ in questions]
        PICTURES.extend(map(weakref.ref, pictures))
        return [trajectory(q, 0.5 if q.uid in FLAT else float(n % SIZE == 0), images=[picture])
                for n, (q, picture) in enumerate(zip(questions, pictures, strict=True))]

    monkeypatch.setattr(rollouts, 'run_policy', run_policy)
    monkeypatch.setattr(rollouts, 'score', lambda *_: None)

    def make(dynamic_sampling=0):
        phase = grpo.grpo_phase(GrpoConfig(group_size=SIZE, prompts=4, mini_batches=1))
        context = types.SimpleNamespace(
            seed=0, sampler=types.SimpleNamespace(release=lambda: None), judge=None,
            actions=get_actions(), features=None, for_sampling=lambda params: params,
            clear_features=lambda: None)
        collector = Collector(context, phase, None, RewardConfig(), QUESTIONS, SIZE,
                              keep_features=True, dynamic_sampling=dynamic_sampling)
        return collector, calls

    return make


def uids(rollout):
    return [group[0].question.uid for group in rollout.groups]


def test_without_dynamic_sampling_every_group_stays(space):
    collector, calls = space()
    rollout = collector.collect({}, 0, QUESTIONS[:4])
    assert uids(rollout) == ['q0', 'q1', 'q2', 'q3']
    assert all(len(group) == SIZE for group in rollout.groups) and len(calls) == 1
    assert rollout.metrics['no_spread'] == 0.75 and rollout.metrics['rounds'] == 1


def test_groups_without_spread_are_replaced(space):
    collector, calls = space(dynamic_sampling=50)
    PICTURES.clear()
    rollout = collector.collect({}, 0, QUESTIONS[:4])
    assert len(rollout.groups) == 4 and not FLAT & set(uids(rollout))
    assert uids(rollout)[0] == 'q1'
    # As many new questions as groups are missing.
    missing = 3
    for _, asked, _ in calls[1:]:
        assert len(asked) == SIZE * missing
        missing -= len({uid for uid in asked} - FLAT)
    assert missing == 0 and rollout.metrics['rounds'] == len(calls)
    # No question comes twice in a step, and of those that were dropped no image is kept.
    asked = [uid for _, call, _ in calls for uid in call[::SIZE]]
    assert len(set(asked)) == len(asked)
    gc.collect()
    assert sum(ref() is not None for ref in PICTURES) == 4 * SIZE < len(PICTURES)
    seeds = [seed for _, _, seeds in calls for seed in seeds]
    assert len(set(seeds)) == len(seeds)


def test_what_replaces_them_depends_on_the_step_alone(space):
    collector, calls = space(dynamic_sampling=3)
    first = uids(collector.collect({}, 7, QUESTIONS[:4]))
    again, _ = space(dynamic_sampling=3)
    assert uids(again.collect({}, 7, QUESTIONS[:4])) == first
    half = len(calls) // 2
    assert calls[:half] == calls[half:]
    other = [asked for _, asked, _ in calls[1:half]]
    again.collect({}, 8, QUESTIONS[:4])
    assert [asked for _, asked, _ in calls[2 * half + 1 :]] != other


def test_after_the_last_round_it_goes_on_with_what_there_is(space, monkeypatch):
    monkeypatch.setattr('tests.training.test_grpo.FLAT', {q.uid for q in QUESTIONS})
    collector, calls = space(dynamic_sampling=2)
    rollout = collector.collect({}, 0, QUESTIONS[:4])
    assert rollout.groups == [] and len(calls) == 3
    assert rollout.metrics['no_spread'] == 1.0


def test_when_every_question_was_asked_it_goes_on_with_what_there_is(space, monkeypatch):
    monkeypatch.setattr('tests.training.test_grpo.FLAT', {q.uid for q in QUESTIONS})
    collector, calls = space(dynamic_sampling=50)
    rollout = collector.collect({}, 0, QUESTIONS[:8])
    # Of twelve questions only four were left.
    assert rollout.groups == [] and [len(asked) // SIZE for _, asked, _ in calls] == [8, 4]


class Learner:
    """Counts what is asked of it."""

    vision_is_frozen = True

    def __init__(self, logprobs=None):
        self.updates, self.skipped, self.scored, self.references = [], 0, [], []
        self._logprobs = logprobs
        self.state = types.SimpleNamespace(params='current', trainable={}, frozen={})

    def logprobs(self, params, sequences, features):
        self.scored.append(params)
        return [self._logprobs * s.loss_mask for s in sequences]

    def update(self, sequences, features, left_out, reference):
        self.updates.append(sequences)
        self.references.append(reference)
        return {'loss': float(len(self.updates)), 'tokens': 10.0, 'drift_mean': 0.5,
                'drift_max': 1.0}

    def skip(self):
        self.skipped += 1


def rollout_of(*groups):
    return Rollout([[trajectory(QUESTIONS[n], **fields) for fields in group]
                         for n, group in enumerate(groups)], {})


def config(**fields):
    fields = {'group_size': 2, 'prompts': 2, 'mini_batches': 1, **fields}
    loss = fields.pop('loss', {'kl_coef': 0.0})
    return GrpoConfig(loss=GrpoLossConfig(**loss), **fields)


RIGHT, WRONG = {'reward': 1.0}, {'reward': 0.0}
RNG = np.random.default_rng(0)


def test_masked_trajectories_count_in_their_groups_mean_alone():
    groups = rollout_of([RIGHT, {**WRONG, 'truncated': True}],
                        [{**RIGHT, 'finished': False}, WRONG])
    for masks, trained in (({}, [1, 1, 1, 1]), ({'mask_truncated': True}, [1, 0, 1, 1]),
                           ({'mask_unfinished': True}, [1, 1, 0, 1])):
        sequences, _ = grpo.rl_sequences(
            Learner(), groups, config(advantages='group_mean', **masks), None)
        assert [bool(s.loss_mask.any()) for s in sequences] == [bool(t) for t in trained]
        # Means of 1/2 whoever is masked; nothing stands on tokens that were not sampled.
        assert [s.advantages[-1] for s in sequences] == [0.5, -0.5, 0.5, -0.5]
        assert all((s.advantages[:3] == 0).all() for s in sequences)


def test_a_mini_batch_with_nothing_to_learn_is_counted_and_skipped():
    learner = Learner()
    assert grpo.update(learner, 'reference', Rollout([], {}), config(mini_batches=2),
                       None, RNG) == {}
    assert learner.skipped == 2 and not learner.updates
    groups = rollout_of([RIGHT, {**WRONG, 'truncated': True}])
    grpo.update(learner, 'reference', groups,
                config(mini_batches=2, mask_truncated=True, old_logprobs='sampler'), None, RNG)
    assert learner.skipped == 3 and [len(u) for u in learner.updates] == [1]


def test_old_log_probs_of_the_sampler():
    learner = Learner()
    metrics = grpo.update(learner, 'reference', rollout_of([RIGHT, WRONG], [WRONG, RIGHT]),
                          config(old_logprobs='sampler', mini_batches=2), None, RNG)
    assert learner.scored == [] and learner.references == [None, None]
    np.testing.assert_array_equal(learner.updates[0][0].old_logprobs, [0, 0, 0, -1, -1, -1])
    # Means over the mini-batches, sums of tokens, and the drift before the first update.
    assert metrics == {'loss': 1.5, 'tokens': 20.0, 'drift_mean': 0.5, 'drift_max': 1.0}


def test_old_log_probs_of_the_learner_and_the_drift_between_the_two():
    learner = Learner(logprobs=np.float32(-1.25))
    metrics = grpo.update(learner, 'reference', rollout_of([RIGHT, WRONG]),
                          config(mini_batches=2, loss={'kl_coef': 0.1}), None, RNG)
    assert learner.scored == ['current'] and learner.references == ['reference'] * 2
    sequence = learner.updates[0][0]
    np.testing.assert_array_equal(sequence.old_logprobs, [0, 0, 0, -1.25, -1.25, -1.25])
    np.testing.assert_array_equal(sequence.sampler_logprobs, [0, 0, 0, -1, -1, -1])
    assert metrics['drift_mean'] == metrics['drift_max'] == 0.25 and metrics['drift_share'] == 1


def test_drift_by_hand():
    found = grpo.drift([np.array([9.0, -1.0]), np.array([-2.0])],
                       [np.array([0.0, -1.004]), np.array([-2.5])],
                       [np.array([0, 1]), np.array([1])])
    assert found == pytest.approx(
        {'drift_mean': (0.004 + 0.5) / 2, 'drift_max': 0.5, 'drift_share': 0.5})


@pytest.mark.parametrize(('fields', 'message'), [
    ({'advantages': 'best'}, "advantages must be one of .*'leave_one_out'.*got 'best'"),
    ({'old_logprobs': 'yes'}, 'old_logprobs must be one of'),
    ({'dynamic_sampling': -1}, 'dynamic_sampling'),
    ({'save_every': 0}, 'save_every must be positive, got 0'),
    ({'steps': -1}, 'steps must not be negative'),
    ({'mini_batches': 2, 'old_logprobs': 'sampler', 'loss': {'importance_cap': 2.0}},
     "importance_cap nothing to correct in mini_batches = 2 updates; take 'learner'"),
    ({'mini_batches': 2, 'overlap': True}, 'overlap needs the ratio to the policy that sampled'),
    ({'overlap': True, 'save_every': 1}, 'overlap needs save_every > 1')])
def test_what_cannot_be_meant_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(('fields', 'source', 'current'), [
    ({}, 'sampler', False), ({'mini_batches': 2}, 'learner', False),
    ({'loss': {'importance_cap': 2.0}}, 'sampler', True),
    ({'old_logprobs': 'learner', 'loss': {'importance_cap': 2.0}}, 'learner', False)])
def test_whose_log_probs_are_the_old_ones(fields, source, current):
    made = config(**fields)
    assert (made.old_source, made.old_is_current) == (source, current)


def test_a_rollout_ahead_has_the_weights_before_the_update():
    seen, going = [], threading.Event()

    class Collector:
        def collect(self, params, step, prompts):
            assert going.wait(20)
            seen.append((step, prompts, {k: float(v) for k, v in params.items()}))
            return Rollout([], {'step': step})

    learner = Learner()
    trainable, frozen = {'a': jnp.float32(1)}, {'b': jnp.float32(2)}
    learner.state = types.SimpleNamespace(
        trainable=trainable, frozen=frozen, params=trainable | frozen)
    with RolloutAhead(Collector(), lambda params: params) as ahead:
        assert ahead.pop(4) is None
        ahead.start(5, learner, ['question'])
        learner.state.trainable['a'].delete()  # As the update does, which donates it.
        learner.state.trainable = {'a': jnp.float32(3)}
        going.set()
        assert ahead.pop(5) == Rollout([], {'step': 5})
        assert ahead.pop(5) is None
    assert seen == [(5, ['question'], {'a': 1.0, 'b': 2.0})]


def test_a_rollout_ahead_that_fails_is_heard_of():
    class Collector:
        def collect(self, params, step, prompts):
            raise ConnectionError('the judge is gone')

    with (RolloutAhead(Collector(), lambda params: {}) as ahead,
          pytest.raises(ConnectionError, match='the judge is gone')):
        ahead.start(1, Learner(), [])
        ahead.pop(1)


def test_image_features_are_forgotten_where_the_vision_tower_changes(space):
    collector, _ = space()
    forgotten = []
    collector._context.clear_features = lambda: forgotten.append(True)
    collector.collect({}, 0, QUESTIONS[:1])
    assert not forgotten
    collector._keep_features = False
    collector.collect({}, 0, QUESTIONS[:1])
    assert forgotten == [True]


def test_only_what_the_update_would_take_is_copied_for_a_rollout_ahead():
    got = []

    class Collector:
        def collect(self, params, step, prompts):
            got.append(params)
            return Rollout([], {})

    def for_sampling(params):
        return {**params, 'cast': params['cast'].astype(jnp.bfloat16)}

    trainable = {'cast': jnp.ones(2), 'as it is': jnp.ones(3)}
    frozen = {'frozen': jnp.ones(4)}
    learner = types.SimpleNamespace(state=types.SimpleNamespace(
        trainable=trainable, frozen=frozen, params=trainable | frozen))
    with RolloutAhead(Collector(), for_sampling) as ahead:
        ahead.start(0, learner, [])
        ahead.pop(0)
    assert got[0]['cast'].dtype == jnp.bfloat16 and got[0]['frozen'] is frozen['frozen']
    copy = got[0]['as it is']
    assert copy.unsafe_buffer_pointer() != trainable['as it is'].unsafe_buffer_pointer()


def test_an_error_beside_a_rollout_ahead_gives_it_up(space, monkeypatch):
    began, noticed = threading.Event(), threading.Event()

    def run_policy(*_, cancelled):
        began.set()
        for _ in range(2000):
            if cancelled():
                noticed.set()
                raise CancelledError
            noticed.wait(0.01)

    collector, _ = space()
    monkeypatch.setattr(rollouts, 'run_policy', run_policy)
    learner = Learner()
    with pytest.raises(MemoryError), RolloutAhead(collector, lambda params: {}) as ahead:
        ahead.start(0, learner, QUESTIONS[:4])
        assert began.wait(20)
        raise MemoryError
    assert noticed.is_set()
