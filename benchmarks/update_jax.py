"""Our side of the update benchmark; started by `benchmarks.update`."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import groups, paired
from benchmarks.setting import open_run
from vrag_jax.learner import steps
from vrag_jax.learner.learner import Learner
from vrag_jax.run.context import RunContext


class Updates:
    """GRPO updates on given groups, always from the same weights.

    Args:
      space: the run.
      path: where the groups are written.
      prompts: questions.
      group_size: trajectories of each.
      lead: optimiser steps that are taken first.
    """

    def __init__(self, space: RunContext, path: Path, prompts: int, group_size: int, lead: int):
        config = space.config
        self._reference = space.initial_params()
        space.features.warm_up(self._reference)
        trajectories = groups.sample_groups(space, self._reference, prompts, group_size)
        groups.save_sequences(path, groups.rl_sequences(space, trajectories, group_size))
        self.sequences = groups.load_sequences(path)
        self._features = space.features
        self._learner = Learner(
            space.graphdef, self._reference, space.model_config, config.grpo.learner,
            steps.grpo(config.grpo.loss), max(1, config.grpo.steps * config.grpo.mini_batches),
            space.mesh, config.grpo.sampling.temperature)
        if not self._learner.vision_is_frozen:
            raise ValueError('the update is measured with a frozen vision tower')
        self._learner.warm_up(self._features, self._reference)
        for _ in range(lead):
            self._step('learner')
        self._start = self._copy(self._learner.state)

    @staticmethod
    def _copy(state):
        copied = jax.tree.map(jnp.copy, (state.trainable, state.opt_state, state.step))
        return dataclasses.replace(
            state, trainable=copied[0], opt_state=copied[1], step=copied[2])

    def _step(self, old: str) -> dict[str, float]:
        learner, features = self._learner, self._features
        given = self.sequences
        if old == 'learner':
            current = learner.logprobs(learner.state.params, given, features)
            given = groups.with_values(given, old_logprobs=current)
        return learner.update(given, features, reference=self._reference)

    def update(self, old: str = 'learner', keep_features: bool = False
               ) -> tuple[float, dict[str, Any]]:
        """Reference log-probs, old log-probs, loss, backward pass, optimiser step.

        Args:
          old: 'learner' works the old log-probs out, 'sampler' takes those recorded.
          keep_features: whether image features are there from the rollout.
        """
        self._learner.state = self._copy(self._start)
        if not keep_features:
            self._features.clear()
        jax.block_until_ready(self._learner.state)
        seconds, metrics = paired.timed(lambda: self._finished(old))
        return seconds, metrics

    def parts(self) -> tuple[float, dict[str, float]]:
        """Seconds of each part of an update, one after the other and waited for."""
        learner, features, seconds = self._learner, self._features, {}

        def part(name, function):
            seconds[name], result = paired.timed(lambda: jax.block_until_ready(function()))
            return result

        learner.state = self._copy(self._start)
        features.clear()
        images = {image.key: image for s in self.sequences for image in s.images}

        def encode():
            features.rows_of(self._reference, images.values())
            return features.buffer

        part('images', encode)
        ref = part('reference log-probs', lambda: learner.logprobs(
            self._reference, self.sequences, features))
        old = part('old log-probs', lambda: learner.logprobs(
            learner.state.params, self.sequences, features))
        given = groups.with_values(self.sequences, ref_logprobs=ref, old_logprobs=old)
        part('loss, gradients, AdamW', lambda: (learner.update(given, features), learner.state))
        return sum(seconds.values()), seconds

    def _finished(self, old: str) -> dict[str, float]:
        metrics = self._step(old)
        jax.block_until_ready(self._learner.state)
        return metrics


def main() -> None:
    options = json.loads(sys.argv[1])
    space = open_run(Path(options['workdir']), Path(options['config']))
    updates = Updates(space, Path(options['groups']), options['prompts'],
                      options['group_size'], options['lead'])
    for old in ('learner', 'sampler'):
        for keep_features in (False, True):
            updates.update(old, keep_features)
    layout = space.config.grpo.learner.layout
    facts = {**paired.versions('jax', 'jaxlib', 'flax', 'optax', 'numpy'),
             'platform': jax.default_backend(), 'dtype': space.config.policy.dtype,
             'rows': layout.rows, 'length': layout.length,
             'groups': groups.facts(updates.sequences)}
    paired.serve({'update': updates.update, 'parts': updates.parts}, facts)


if __name__ == '__main__':
    main()
