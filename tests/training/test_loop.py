"""A phase goes on from its checkpoint, unless that was made by another."""

import dataclasses
import types

import jax.numpy as jnp
import pytest

from vrag_jax.learner.learner import LearnerConfig
from vrag_jax.learner.steps import supervised
from vrag_jax.learner.train_state import TrainState
from vrag_jax.metrics import MetricsWriter
from vrag_jax.training.loop import Iterations
from vrag_jax.training.phase import Phase


class Counting:
    """A learner whose updates count."""

    def __init__(self):
        self.state = TrainState(
            trainable={'a': jnp.zeros(2)}, frozen={}, opt_state=(), step=jnp.int32(0))

    @property
    def step(self):
        return int(self.state.step)

    def update(self, updates):
        self.state = dataclasses.replace(self.state, step=self.state.step + updates)
        return {'loss': 0.0}


@pytest.fixture
def run(tmp_path):
    """Returns a function that runs a phase and gives the steps that it took."""
    def run(total, seed=0, updates=2, stop=None):
        learner, steps = Counting(), []
        phase = Phase('grpo', supervised, LearnerConfig(), save_every=2, updates=updates)
        context = types.SimpleNamespace(
            seed=seed, workdir=tmp_path, metrics=MetricsWriter(tmp_path),
            clear_features=lambda: None)
        iterations = Iterations(context, phase, learner, total)
        left = iterations.left
        for step in iterations:
            if step == stop:
                return steps
            steps.append(step)
            context.metrics.write(step + 1, learner.update(updates))
        assert left == len(steps)
        return steps

    return run


def test_it_goes_on_where_it_stopped(run):
    assert run(3) == [0, 1, 2] and run(5) == [3, 4] and run(5) == []


def test_what_came_after_the_last_checkpoint_is_done_again(run):
    assert run(6, stop=3) == [0, 1, 2] and run(6) == [2, 3, 4, 5]


def test_a_checkpoint_of_other_settings_is_refused(run):
    run(1)
    with pytest.raises(ValueError, match='a run with seed 0, not 1'):
        run(2, seed=1)
    with pytest.raises(ValueError, match=r'2 updates a step \(grpo.mini_batches\), not 5'):
        run(2, updates=5)
    assert run(2) == [1]
