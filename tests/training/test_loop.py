"""A phase goes on from its checkpoint, unless that was made by another."""

import dataclasses

import jax.numpy as jnp
import pytest

from vrag_jax.learner.train_state import TrainState
from vrag_jax.metrics import MetricsWriter
from vrag_jax.training.loop import run_phase


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
    def run(total, seed=0, updates=2):
        learner, steps = Counting(), []

        def step(index, _):
            steps.append(index)
            return learner.update(updates)

        run_phase('grpo', learner, tmp_path / 'checkpoints', seed, total, lambda index: index,
                  step, MetricsWriter(tmp_path), save_every=2, updates_per_step=updates)
        return steps

    return run


def test_it_goes_on_where_it_stopped(run):
    assert run(3) == [0, 1, 2] and run(5) == [3, 4] and run(5) == []


def test_a_checkpoint_of_other_settings_is_refused(run):
    run(1)
    with pytest.raises(ValueError, match='a run with seed 0, not 1'):
        run(2, seed=1)
    with pytest.raises(ValueError, match=r'2 updates a step \(grpo.mini_batches\), not 5'):
        run(2, updates=5)
    assert run(2) == [1]
