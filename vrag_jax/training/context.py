"""What a training phase needs of a run; `run.context.RunContext` has it all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from flax import nnx
from jax.sharding import Mesh

from vrag_jax.actions.action import ActionType
from vrag_jax.metrics import MetricsWriter
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.policy import PolicyModel
from vrag_jax.parallel.sharding import Rules
from vrag_jax.rollout.context import RolloutContext
from vrag_jax.sampling.image_features import ImageFeatureCache


class TrainingContext(RolloutContext, Protocol):
    """The parts of a run that training uses, besides those for rollouts.

    Attributes:
      workdir: where the run keeps its files.
      metrics: where metrics are written.
      mesh: the devices.
      learner_rules: mesh axes of each logical axis when learning.
      graphdef, model_config: structure and sizes of the policy.
      learner_features: image features for the learner.
      actions: that the policy has.
    """

    @property
    def workdir(self) -> Path: ...
    @property
    def metrics(self) -> MetricsWriter: ...
    @property
    def mesh(self) -> Mesh: ...
    @property
    def learner_rules(self) -> Rules: ...
    @property
    def graphdef(self) -> nnx.GraphDef[PolicyModel]: ...
    @property
    def model_config(self) -> ModelConfig: ...
    @property
    def learner_features(self) -> ImageFeatureCache: ...
    @property
    def actions(self) -> Sequence[ActionType]: ...
