"""A training phase as a value: read by the loop, by `task=plan` and by `task=compile` alike."""

import dataclasses

from vrag_jax.learner.learner import LearnerConfig
from vrag_jax.learner.steps import Loss
from vrag_jax.sampling.distribution import SamplingConfig


@dataclasses.dataclass(frozen=True)
class Phase:
    """What a phase does in an iteration, and how long it goes on.

    Attributes:
      name: in metrics, checkpoints and random seeds; the phase's section of the config.
      loss: what is minimised.
      learner: optimiser and shapes.
      save_every: iterations between checkpoints.
      steps: iterations; 0 leaves it to `epochs`.
      epochs: passes over the items.
      items: sequences or questions that an iteration takes of those that epochs go over.
      sequences: that an iteration learns from, at most.
      updates: optimiser steps an iteration.
      temperature: at which the sequences are sampled; divides the learner's logits, too.
      dropout: whether adapters drop inputs, as `policy.lora.dropout` says.
      scored: the policies whose log-probs are computed before the updates, e.g. 'reference'.
      rollout: how an iteration draws tokens; None where its sequences are given.
      trajectories: that an iteration samples.
      overlap: whether the next rollout runs beside the update.
    """

    name: str
    loss: Loss
    learner: LearnerConfig
    save_every: int
    steps: int = 0
    epochs: int = 0
    items: int = 1
    sequences: int = 1
    updates: int = 1
    temperature: float = 1.0
    dropout: bool = True
    scored: tuple[str, ...] = ()
    rollout: SamplingConfig | None = None
    trajectories: int = 0
    overlap: bool = False

    @property
    def trains(self) -> bool:
        """Whether it has an iteration at all."""
        return bool(self.steps or self.epochs)

    def iterations(self, count: int) -> int:
        """Returns how many iterations it has, of so many items."""
        return self.steps or -(-self.epochs * count // self.items)

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint follows an iteration, counted from 0, that is not the last."""
        return (step + 1) % self.save_every == 0
