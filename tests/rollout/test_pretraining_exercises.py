"""Pretraining exercises: what they ask for, and what of it is learned."""

import random
import re

import numpy as np
import pytest

from vrag_jax.experts.pretraining import PretrainingExercises


@pytest.fixture(scope='module')
def make_exercises(world, store, pageworld, questions):
    def make(**settings):
        return PretrainingExercises(world, store, pageworld.layouts, questions, **settings)
    return make


def learned(world, sequence):
    """The texts of the runs of learned tokens."""
    edges = np.flatnonzero(np.diff(sequence.loss_mask, prepend=0, append=0))
    return [world.chat.decode(sequence.tokens[a:b]) for a, b in edges.reshape(-1, 2)]


def test_as_many_of_each_kind_as_asked_for(world, make_exercises):
    sequences = make_exercises().sample(random.Random(0), 2, 3, 4, 5, 6)
    assert [len(sequence.images) for sequence in sequences[:12]] == [1] * 12
    texts = [learned(world, sequence) for sequence in sequences]
    assert all(re.fullmatch(r'<think>\d{3}\.</think>', *text) for text in texts[:3])
    assert all('<search>' in text[0] and len(text) == 1 for text in texts[12:14])
    assert len(texts) == 20 and all('<answer>' in text[-1] for text in texts[14:])


def test_headings_are_written_down_and_looked_for(world, make_exercises):
    goals, whole = set(), 0
    for sequence in make_exercises().sample(random.Random(0), 0, 0, 0, 40, 0):
        text, = learned(world, sequence)
        thoughts = re.findall('<think>(.*?)</think>', text)
        assert ''.join(f'<think>{thought}</think>' for thought in thoughts) == text
        listings = []
        for thought in thoughts:
            goal, listing = re.fullmatch(r'(?: ([^:]*):)?(.*)\.', thought).groups()
            pairs = re.findall(r' (top|bottom) (left|right) ([A-Z])', listing)
            assert ''.join(f' {v} {h} {x}' for v, h, x in pairs) == listing
            v, h, heading = pairs[-1]
            # It ends where the goal comes, and not before.
            assert goal in (heading, f'{v} {h}') if goal else len(pairs) == 4
            listings.append(listing)
            goals.add(goal)
        assert all(max(listings, key=len).startswith(listing) for listing in listings)
        sought = thoughts[1:] if len(thoughts) == 4 else thoughts
        assert len(sought) == len(set(listings[-3:])) == 3
        whole += len(thoughts) == 4
    assert 10 <= whole <= 30 and 'bottom left' in goals and len(goals) > 8


def test_boxes_that_are_off_are_not_learned_but_all_else_is(world, make_exercises):
    careful, errant = (
        make_exercises(errant=share).sample(random.Random(3), 0, 0, 0, 0, 12)
        for share in (0.0, 1.0))
    boxes = 0
    for exact, off in zip(careful, errant, strict=True):
        # The same questions: only the boxes differ, and with them what is seen.
        want = [re.sub('<bbox>.*', '', text) for text in learned(world, exact)]
        assert learned(world, off) == want
        boxes += sum('<bbox>' in text for text in learned(world, exact))
        assert '<bbox>' not in ''.join(learned(world, off))
        assert '<bbox>' in world.chat.decode(off.tokens) or len(off.images) == 1
    assert boxes >= 8
