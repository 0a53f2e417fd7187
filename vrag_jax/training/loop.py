"""The loop of every phase: a `for` over the iterations that are left, which resumes and saves.

    learner = make_learner(context, phase, params, total)
    iterations = Iterations(context, phase, learner, total)
    for step in iterations:
        context.metrics.write(step + 1, learner.update(sequences(step)))
"""

from collections.abc import Iterator

import jax
import numpy as np

from vrag_jax.data.order import host_rng
from vrag_jax.learner.checkpoint import Checkpointer
from vrag_jax.learner.learner import Learner
from vrag_jax.models.common.parameters import Params
from vrag_jax.training.context import TrainingContext
from vrag_jax.training.phase import Phase


def make_learner(context: TrainingContext, phase: Phase, params: Params, total: int) -> Learner:
    """Returns the learner of a phase.

    Args:
      context: the run.
      phase: whose loss, optimiser and shapes it gets.
      params: weights to start from.
      total: iterations of the phase.
    """
    return Learner(
        context.graphdef, params, context.model_config, phase.learner, phase.loss,
        max(1, total * phase.updates), context.mesh, phase.temperature, context.learner_rules,
        context.seed if phase.dropout else None)


class Iterations:
    """The iterations of a phase that are left, counted from 0.

    Made, it restores the learner from the phase's newest checkpoint, if there is one. Whenever
    a turn of the `for` loop over it is over, it saves what is due: each `phase.save_every`
    iterations, and after the last.

    Args:
      context: the run.
      phase: says when to save.
      learner: its state is restored and saved.
      total: iterations of the phase.

    Raises:
      ValueError: if the checkpoint is one of another seed or number of updates an iteration.
    """

    def __init__(self, context: TrainingContext, phase: Phase, learner: Learner, total: int):
        self._context, self._phase, self._learner, self._total = context, phase, learner, total
        directory = context.workdir / 'checkpoints' / phase.name
        self._checkpointer = Checkpointer(directory)
        if self._checkpointer.latest is not None:
            restored = self._checkpointer.restore(learner.state)
            if restored.host['seed'] != context.seed:
                raise ValueError(
                    f'{directory}: this checkpoint belongs to a run with seed '
                    f'{restored.host["seed"]}, not {context.seed}')
            before = restored.host.get('updates_per_step', phase.updates)
            if before != phase.updates:
                raise ValueError(
                    f'{directory}: this checkpoint belongs to a run of {before} updates '
                    f'a step ({phase.name}.mini_batches), not {phase.updates}')
            learner.state = restored.state
            context.clear_features()  # As after the save, so that both go on alike.
        self._first = learner.step // phase.updates
        if self.left:
            # Compiled now, not at the first save.
            device_key(context.seed, self._first)
            self._checkpointer.warm_up(learner.state)

    @property
    def left(self) -> int:
        """How many iterations are left."""
        return max(0, self._total - self._first)

    def __iter__(self) -> Iterator[int]:
        metrics, phase = self._context.metrics, self._phase
        metrics.begin(phase.name, self._first, self._total)
        for step in range(self._first, self._total):
            yield step
            if phase.saves_after(step) or step + 1 == self._total:
                self._save(step + 1)
                self._context.clear_features()
        metrics.end()
        self._checkpointer.close()

    def _save(self, position: int) -> None:
        """Saves the learner with the random state and the position in the data."""
        seed, name = self._context.seed, self._phase.name
        self._checkpointer.save(self._learner.state, device_key(seed, position), {
            'seed': seed,
            'phase': name,
            'data_position': position,
            'updates_per_step': self._phase.updates,
            'host_random_state': host_rng(seed, name, position).bit_generator.state,
        })


def device_key(seed: int, position: int) -> np.ndarray:
    """Returns the data, `[2]` uint32, of the device's random key at a position."""
    return np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(seed), position)))
