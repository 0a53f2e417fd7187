"""The reward of a trajectory: a weighted sum of rewards by name, and a gate."""

import dataclasses
from collections.abc import Mapping

# Imported for the rewards that they register.
from vrag_jax.rewards import judge, pattern, retrieval  # noqa: F401
from vrag_jax.rewards.registry import REWARDS

ANSWER, TOTAL = 'answer', 'total'


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The total reward, `sum of weights[name] * reward(name)`, and what is reported beside it.

    Attributes:
      weights: of rewards in `REWARDS`; must sum to 1. The paper has no 'pattern' after SFT, and
        0.1 of it without SFT.
      gate: a reward; where it is not 1 the total is 0. The paper's public code gates by the
        pattern. '' is no gate.
      report: rewards that are worked out even if they have no weight. The answer's always is.
    """

    weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {'answer': 0.7, 'retrieval': 0.2, 'pattern': 0.1})
    gate: str = 'pattern'
    report: tuple[str, ...] = ('answer', 'retrieval', 'pattern')

    def __post_init__(self):
        for name in self.names:
            REWARDS.check(name)
        for name, weight in self.weights.items():
            REWARDS.check(name)
            if not 0 <= weight <= 1:
                raise ValueError(f'weights.{name} must be in [0, 1], got {weight}')
        if abs(sum(self.weights.values()) - 1) > 1e-6:
            raise ValueError(f'weights must sum to 1, got {dict(self.weights)}')

    @property
    def names(self) -> tuple[str, ...]:
        """Rewards that are worked out."""
        gate = (self.gate,) if self.gate else ()
        weighted = (name for name, weight in self.weights.items() if weight)
        return tuple(dict.fromkeys((ANSWER, *weighted, *gate, *self.report)))


def combine(config: RewardConfig, rewards: Mapping[str, float]) -> dict[str, float]:
    """Adds up a trajectory's rewards.

    Args:
      config: what each counts.
      rewards: by name, of `config.names`, each in [0, 1].

    Returns:
      The rewards, and their sum in [0, 1] under 'total'.

    Raises:
      ValueError: if a reward is outside [0, 1] or not a number.
    """
    for name, value in rewards.items():
        if not 0 <= value <= 1:
            raise ValueError(f'the {name} reward must be in [0, 1], got {value}')
    total = sum(weight * rewards[name] for name, weight in config.weights.items() if weight)
    if config.gate and rewards[config.gate] < 1:
        total = 0.0
    return {**rewards, TOTAL: total}


def reward_metrics(rewards: list[Mapping[str, float]]) -> dict[str, float]:
    """Means over trajectories: 'reward' of the total, 'accuracy' of answers, 'reward_NAME'.

    Args:
      rewards: of each trajectory, as `combine` returns them.
    """
    names = {TOTAL: 'reward', ANSWER: 'accuracy'}
    return {names.get(name, f'reward_{name}'): sum(each[name] for each in rewards) / len(rewards)
            for name in rewards[0]}
