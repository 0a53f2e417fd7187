"""Packed as configs/tiny.py packs them, PageWorld's trajectories leave little padding."""

import random
from importlib import import_module

import numpy as np
import pytest

from vrag_jax.config import parse
from vrag_jax.experts.pretraining import PretrainingExercises
from vrag_jax.learner.batch import micro_batches
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig

BATCHES = 12


@pytest.fixture(scope='module')
def space(tmp_path_factory):
    """A run of the tiny config over few documents."""
    config = import_module('configs.tiny').get_config()
    config.data.pageworld.update({
        'train_documents': 20, 'validation_documents': 1, 'test_documents': 1,
        'train_questions': 240, 'validation_questions': 4, 'test_questions': 4})
    return RunContext(parse(RunConfig, config), tmp_path_factory.mktemp('padding'))


@pytest.fixture(scope='module')
def played(space):
    """Sequences of the three experts, with the shares of SFT."""
    found = space.demonstrations().scripted(space.world(), space.config.sft.shares, 240)
    return [t.sequence() for t in found]


def padding(space, batches, config, with_images):
    """Share of the positions of all micro-batches that hold no token."""
    rows_of = lambda images: {i.key: np.zeros(i.tokens, np.int32) for i in images}  # noqa: E731
    positions = sum(
        micro.positions for batch in batches
        for micro in micro_batches(batch, config.layout, space.model_config,
                                   None if with_images else rows_of))
    return 1 - sum(len(s) for batch in batches for s in batch) / positions


def test_of_grpo(space, played):
    """Mini-batches of 80 trajectories, groups of five at a time."""
    config, rng = space.config, np.random.default_rng(0)
    size = config.grpo.prompts * config.grpo.group_size // config.grpo.mini_batches
    batches = [[played[i] for i in rng.choice(len(played), size)] for _ in range(BATCHES)]
    assert padding(space, batches, config.grpo.learner, with_images=False) <= 0.1


def test_of_sft(space, played):
    config, rng = space.config.sft, np.random.default_rng(0)
    batches = [[played[i] for i in rng.choice(len(played), config.sequences)]
               for _ in range(BATCHES)]
    assert padding(space, batches, config.learner, with_images=False) <= 0.1


@pytest.mark.parametrize('stage', [0, 1, 2])
def test_of_pretraining(space, stage):
    config = space.config.pretrain
    exercises = PretrainingExercises(
        space.world(), space.corpus.store, space.corpus.layouts,
        space.corpus.questions['train'], max_length=config.learner.length)
    batches = [exercises.sample(random.Random(i), *config.stages[stage][1:])
               for i in range(BATCHES)]
    assert padding(space, batches, config.learner, with_images=True) <= 0.1
