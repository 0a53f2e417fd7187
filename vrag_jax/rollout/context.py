"""What it takes to play episodes with a policy; `run.context.RunContext` has it all."""

from collections.abc import Callable
from typing import Protocol

from vrag_jax.models.common.parameters import Params
from vrag_jax.rewards.judge import AnswerJudge
from vrag_jax.sampling.image_features import ImageFeatureCache
from vrag_jax.sampling.sampler import Sampler


class RolloutContext(Protocol):
    """The parts of a run that rollouts use.

    Attributes:
      seed: of everything random.
      sampler: samples the policy's turns.
      features: image features for the sampler.
      for_sampling: lays a policy out for the sampler.
      judge: judges answers.
    """

    @property
    def seed(self) -> int: ...
    @property
    def sampler(self) -> Sampler: ...
    @property
    def features(self) -> ImageFeatureCache: ...
    @property
    def for_sampling(self) -> Callable[[Params], Params]: ...
    @property
    def judge(self) -> AnswerJudge: ...

    def clear_features(self) -> None:
        """Forgets all image features, as when the vision tower changes."""
