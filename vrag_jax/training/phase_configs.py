"""Settings of the training phases: pretraining, SFT, GRPO."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vrag_jax.learner.learner import LearnerConfig
from vrag_jax.learner.losses import GrpoLossConfig
from vrag_jax.learner.variants import ADVANTAGES
from vrag_jax.sampling.distribution import SamplingConfig

OLD_LOGPROBS = ('auto', 'sampler', 'learner')


def _check(config: Any, positive: Sequence[str] = (), not_negative: Sequence[str] = ()) -> None:
    """Raises a ValueError that names the first field that is too small."""
    for name in positive:
        if getattr(config, name) <= 0:
            raise ValueError(f'{name} must be positive, got {getattr(config, name)}')
    for name in not_negative:
        if getattr(config, name) < 0:
            raise ValueError(f'{name} must not be negative, got {getattr(config, name)}')


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of a policy that has no checkpoint, on PageWorld, easy to hard.

    Attributes:
      stages: one after the other, `(steps, queries, numbers, crops, headings,
        episodes)`: how many steps, and how many exercises of each kind a step:
        searches for a question, crops of plain numbers, crops of all kinds, pages
        whose headings are transcribed, whole episodes.
      learner: optimiser and shapes.
      save_every: steps between checkpoints.
    """

    stages: tuple[tuple[int, int, int, int, int, int], ...] = ()
    learner: LearnerConfig = LearnerConfig(lr=1e-3)
    save_every: int = 200

    def __post_init__(self):
        _check(self, positive=('save_every',))
        for stage in self.stages:
            if min(stage) < 0 or not stage[0] or not sum(stage[1:]):
                raise ValueError(f'stages: {stage} must have steps and exercises')

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage[0] for stage in self.stages)

    def exercises(self, step: int) -> tuple[int, ...]:
        """Returns how many exercises of each kind a step takes."""
        for steps, *counts in self.stages:
            if step < steps:
                return tuple(counts)
            step -= steps
        raise ValueError(f'pretraining has only {self.steps} steps')


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on expert trajectories.

    Attributes:
      steps: optimiser steps; 0 leaves it to `epochs`.
      epochs: passes over the trajectories.
      sequences: trajectories a step.
      trajectories: how many expert trajectories are sampled.
      careful, loose, hasty: shares of the experts' habits; must sum to 1.
      learner: optimiser and shapes.
      save_every: steps between checkpoints.
      prepare_threads: that open, scale and tokenise the trajectories of the next steps.
      prepare_ahead: how many steps ahead; their trajectories are held in the host's memory.
    """

    steps: int = 0
    epochs: int = 0
    sequences: int = 32
    trajectories: int = 3000
    careful: float = 0.25
    loose: float = 0.25
    hasty: float = 0.5
    learner: LearnerConfig = LearnerConfig(lr=1e-5)
    save_every: int = 100
    prepare_threads: int = 8
    prepare_ahead: int = 2

    def __post_init__(self):
        _check(self, positive=('sequences', 'save_every', 'prepare_threads'), not_negative=(
            'steps', 'epochs', 'trajectories', 'careful', 'loose', 'hasty', 'prepare_ahead'))
        total = self.careful + self.loose + self.hasty
        if abs(total - 1) > 1e-6:
            raise ValueError(f'careful + loose + hasty must be 1, got {total}')

    @property
    def shares(self) -> dict[str, float]:
        """Share of each expert."""
        return {'careful': self.careful, 'loose': self.loose, 'hasty': self.hasty}


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """Group-relative policy optimisation.

    Attributes:
      steps: iterations of rollout and update; 0 leaves it to `epochs`.
      epochs: passes over the training questions.
      prompts: questions an iteration.
      group_size: trajectories a question.
      mini_batches: optimiser steps an iteration.
      sampling: how training trajectories are drawn.
      loss: clip bounds, coefficients, variants.
      learner: optimiser and shapes.
      advantages: 'group_normalised', 'group_mean' or 'leave_one_out'.
      old_logprobs: whose log-probs the ratio is taken to: those that the 'sampler'
        recorded, those that the 'learner' works out anew before the first update, or
        'auto', the sampler's if one update follows a rollout, else the learner's.
      dynamic_sampling: most rounds in which groups without spread are replaced.
      mask_truncated, mask_unfinished: whether trajectories whose end was cut off, or
        that gave no answer, are left out of the loss (they count in their group's mean).
        A turn that is cut off in mid-episode is an invalid action, and the next follows.
      overlap: whether the next rollout runs beside the update, with the weights
        before it. A run then does not repeat bit by bit.
      save_every: iterations between checkpoints.
    """

    steps: int = 0
    epochs: int = 0
    prompts: int = 32
    group_size: int = 5
    mini_batches: int = 2
    sampling: SamplingConfig = SamplingConfig()
    loss: GrpoLossConfig = GrpoLossConfig()
    learner: LearnerConfig = LearnerConfig()
    advantages: str = 'group_normalised'
    old_logprobs: str = 'auto'
    dynamic_sampling: int = 0
    mask_truncated: bool = False
    mask_unfinished: bool = False
    overlap: bool = False
    save_every: int = 10

    def __post_init__(self):
        _check(self, positive=('prompts', 'mini_batches', 'save_every'),
               not_negative=('steps', 'epochs', 'dynamic_sampling'))
        if self.group_size < 2:
            raise ValueError(
                f'group_size must be at least 2 (a group of one has no advantage), '
                f'got {self.group_size}'
            )
        if (self.prompts * self.group_size) % self.mini_batches:
            raise ValueError(
                f'mini_batches = {self.mini_batches} does not divide prompts * group_size = '
                f'{self.prompts * self.group_size}'
            )
        if self.sampling.temperature == 0:
            raise ValueError('sampling.temperature must be positive: greedy groups have no spread')
        ADVANTAGES.check(self.advantages)
        if self.old_logprobs not in OLD_LOGPROBS:
            raise ValueError(
                f'old_logprobs must be one of {OLD_LOGPROBS}, got {self.old_logprobs!r}')
        capped, several = self.loss.importance_cap > 0, self.mini_batches > 1
        if capped and several and self.old_source == 'sampler':
            raise ValueError(
                "old_logprobs = 'sampler' leaves loss.importance_cap nothing to correct in "
                f"mini_batches = {self.mini_batches} updates; take 'learner'")
        if self.overlap and self.old_source == 'learner' and not capped:
            raise ValueError(
                "overlap needs the ratio to the policy that sampled: old_logprobs = 'sampler', "
                'or a positive loss.importance_cap')
        if self.overlap and self.save_every == 1:
            raise ValueError('overlap needs save_every > 1: no rollout is under way when a '
                             'checkpoint is written')

    @property
    def old_source(self) -> str:
        """'sampler' or 'learner'."""
        if self.old_logprobs == 'auto':
            return 'sampler' if self.mini_batches == 1 else 'learner'
        return self.old_logprobs

    @property
    def old_is_current(self) -> bool:
        """Whether the old policy is the learner's own in the only update."""
        return (self.loss.importance_cap > 0 and self.mini_batches == 1
                and self.old_source == 'sampler')
