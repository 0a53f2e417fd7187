"""The loop that every training phase shares: resume, step, log, save."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from vrag_jax.learner.checkpoint import Checkpointer
from vrag_jax.learner.learner import Learner
from vrag_jax.metrics import MetricsWriter

T = TypeVar('T')


def host_rng(seed: int, phase: str, step: int) -> np.random.Generator:
    """Returns the host's random generator of a step.

    The state of all randomness is the pair (seed, step): a run that resumes at
    a step draws what a run that was never stopped would have drawn.
    """
    return np.random.default_rng([seed, *phase.encode(), step])


def run_phase(
    name: str,
    learner: Learner,
    directory: Path,
    seed: int,
    total: int,
    prepare: Callable[[int], T],
    step: Callable[[int, T], Mapping[str, float]],
    metrics: MetricsWriter,
    save_every: int,
    updates_per_step: int = 1,
    warm_up: Callable[[], None] = lambda: None,
    on_save: Callable[[], None] = lambda: None,
    prefetch: bool = True,
) -> None:
    """Runs a phase to its end, from its newest checkpoint if there is one.

    Args:
      name: of the phase, in metrics and random seeds.
      learner: its state is restored, advanced and saved.
      directory: of the phase's checkpoints.
      seed: of the run.
      total: steps of the phase.
      prepare: host work of a step that does not depend on the parameters.
      step: takes what `prepare` made, changes `learner`, returns metrics.
      metrics: where they are written.
      save_every: steps between checkpoints; the last step is always saved.
      updates_per_step: optimiser steps that `step` takes.
      warm_up: called once before the first step, if any is left: compiles.
      on_save: called right after a checkpoint, in a run that goes on, and after
        a restore: whatever it resets is then the same in both.
      prefetch: whether `prepare` of the next step runs beside this one.
    """
    checkpointer = Checkpointer(directory)
    if checkpointer.latest is not None:
        restored = checkpointer.restore(learner.state)
        if restored.host['seed'] != seed:
            raise ValueError(
                f'{directory}: this checkpoint belongs to a run with seed '
                f'{restored.host["seed"]}, not {seed}'
            )
        before = restored.host.get('updates_per_step', updates_per_step)
        if before != updates_per_step:
            raise ValueError(f'{directory}: this checkpoint belongs to a run of {before} updates '
                             f'a step (grpo.mini_batches), not {updates_per_step}')
        learner.state = restored.state
        on_save()
    first = learner.step // updates_per_step
    if first < total:
        # Compiled now, not at the first save.
        device_key(seed, first)
        checkpointer.warm_up(learner.state)
        warm_up()
    metrics.begin(name, first, total)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(prepare, first) if first < total else None
        for index in range(first, total):
            assert ahead is not None
            ready = ahead.result()
            if prefetch and index + 1 < total:
                ahead = pool.submit(prepare, index + 1)
            values = step(index, ready)
            if not prefetch and index + 1 < total:
                ahead = pool.submit(prepare, index + 1)
            metrics.write(index + 1, values)
            if (index + 1) % save_every == 0 or index + 1 == total:
                save(checkpointer, learner, seed, name, index + 1, updates_per_step)
                on_save()
    metrics.end()
    checkpointer.close()


def device_key(seed: int, position: int) -> np.ndarray:
    """Returns the data, `[2]` uint32, of the device's random key at a position."""
    return np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(seed), position)))


def save(checkpointer: Checkpointer, learner: Learner, seed: int, name: str, position: int,
         updates_per_step: int) -> None:
    """Saves the learner with the random state and the position in the data."""
    generator = host_rng(seed, name, position).bit_generator.state
    checkpointer.save(
        learner.state,
        device_key(seed, position),
        {
            'seed': seed,
            'phase': name,
            'data_position': position,
            'updates_per_step': updates_per_step,
            'host_random_state': generator,
        },
    )
