"""What is kept of a rollout does not grow by pixels, and the pictures can be made again."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest

from tests.rollout.test_driver import DRAWN, OPENING
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.rewards.judge import JudgeError, Judgement, JudgeRequest
from vrag_jax.rewards.table import RewardConfig
from vrag_jax.rollout.driver import episode_seed, run_expert, run_policy
from vrag_jax.rollout.scoring import refuse_if_all_failed, score
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.run.outputs import with_images


class Alive:
    """Counts the images with patches that live, and the most at a time."""

    def __init__(self, preprocess):
        self._preprocess = preprocess
        self._seen: weakref.WeakSet[ProcessedImage] = weakref.WeakSet()
        self.most = self.made = 0

    def __call__(self, images):
        # Apart from those of others: equal images would be equal keys of the set.
        made = [_Image(*(getattr(image, name) for name in (
            'key', 'patches', 'grid_thw', 'tokens'))) for image in self._preprocess(images)]
        self._seen.update(made)
        self.made += len(made)
        self.most = max(self.most, len(self._seen))
        return made


class _Image(ProcessedImage):
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


@pytest.fixture
def play(make_world, sampler, features, policy, questions):
    """Returns a function that plays episodes and says how many images lived at a time."""
    def play(count, opening=(), keep=Trajectory.without_tensors):
        world = make_world()
        alive = Alive(world.preprocess)
        world = dataclasses.replace(world, preprocess=alive)
        asked = [dataclasses.replace(questions[i % len(questions)], uid=f'{i}')
                 for i in range(count)]
        gc.collect()
        played = run_policy(world, sampler, features, policy[1], asked, DRAWN,
                            [episode_seed('kept', i) for i in range(count)], opening, keep=keep)
        return played, alive

    return play


@pytest.mark.parametrize('opening', [OPENING[:1], OPENING])
def test_images_alive_do_not_grow_with_the_questions(play, opening):
    _, few = play(24, opening)
    played, many = play(96, opening)
    assert len(played) == 96 and many.made >= 4 * 24
    assert many.most <= 1.25 * few.most < 0.6 * many.made
    # All of them stay where everything is kept.
    _, everything = play(48, opening, keep=lambda trajectory: trajectory)
    assert everything.most == everything.made > few.most


def test_what_is_kept_is_what_was_said(play):
    opening = OPENING
    light, _ = play(6, opening)
    whole, _ = play(6, opening, keep=lambda trajectory: trajectory)
    for kept, full in zip(light, whole, strict=True):
        assert (kept.question, kept.turns, kept.answer, kept.retrieved, kept.truncated) == (
            full.question, full.turns, full.answer, full.retrieved, full.truncated)
        assert [(v.key, v.frame) for v in kept.images] == [(v.key, v.frame) for v in full.images]
        assert not kept.processed and not len(kept.tokens)
        assert all(view.image is None for view in kept.images)


def test_images_come_back_pixel_for_pixel_from_their_pages(world, store, questions, act):
    whole = run_expert(world, questions[:6], act, max_length=10_000)
    assert any(len(t.images) > 1 for t in whole)
    again = with_images([t.without_tensors() for t in whole], store)
    for one, other in zip(whole, again, strict=True):
        for a, b in zip(one.images, other.images, strict=True):
            np.testing.assert_array_equal(a.image, b.image)


class Broken:
    """A judge model that gives no verdict on some answers."""

    name = 'model: m at http://h'

    def __init__(self, works=lambda request: False):
        self._works = works

    def judge(self, requests: list[JudgeRequest]) -> list[Judgement]:
        return [Judgement(1.0, not self._works(r)) if r.answer is not None else Judgement(0.0)
                for r in requests]


def test_answers_without_a_verdict_are_marked_and_a_judge_that_gives_none_is_refused(
        world, questions, act):
    played = run_expert(world, questions[:6], act, max_length=10_000)
    first = played[0].question.query
    score(played, RewardConfig(), Broken(lambda r: r.question == first))
    assert [t.judge_failed for t in played] == [t.question.query != first for t in played]
    refuse_if_all_failed(played, Broken())
    score(played, RewardConfig(), Broken())
    with pytest.raises(JudgeError, match='m at http://h gave no verdict on any of 6 answers'):
        refuse_if_all_failed(played, Broken())
    refuse_if_all_failed(played, Broken(), at_least=7)
    refuse_if_all_failed([], Broken())
