"""Rewards by name: what a finished trajectory earns, each in [0, 1]."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vrag_jax.registry import Registry

# `(trajectories) -> [0, 1] of each`, a sequence of the same length: a reward that asks a server
# gets all trajectories at once.
REWARDS = Registry('reward')


class ScoredEpisode(Protocol):
    """What the rewards here read of a `rollout.trajectory.Trajectory`; others may read all of it.

    Attributes:
      question: with its `query`, `answer`, `aliases`, and `page_ids`, the relevant pages.
      turns: each with its `action`.
      answer: text of the answer, None without one.
      answer_score: the judge's score of the answer, in [0, 1].
      retrieved: page ids in the order in which they were shown.
    """

    question: Any
    turns: Sequence[Any]
    answer: str | None
    answer_score: float
    retrieved: Sequence[str]


def reward(name: str) -> Callable[[Callable[[Any], float]], Callable[[Any], float]]:
    """Returns a decorator that registers a reward of one trajectory."""
    def register(function: Callable[[Any], float]) -> Callable[[Any], float]:
        REWARDS.add(name)(lambda trajectories: [function(each) for each in trajectories])
        return function
    return register
