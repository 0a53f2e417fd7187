"""Figures of a set of held-out trajectories, each with its 95 % interval."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vrag_jax.perception.actions import ActionKind
from vrag_jax.rewards.answer import anls, exact_match
from vrag_jax.rewards.retrieval import ndcg, recall
from vrag_jax.rollout.trajectory import Trajectory

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
      value: the mean.
      low, high: ends of the interval.
      n: how many observations it is the mean of.
    """

    value: float
    low: float
    high: float
    n: int


def share(hits: Iterable[bool]) -> Estimate:
    """Share of true values with its Wilson score interval (Wilson, 1927)."""
    values = [bool(hit) for hit in hits]
    n = len(values)
    if n == 0:
        raise ValueError('a share of nothing')
    p = sum(values) / n
    scale = 1 / (1 + Z95**2 / n)
    centre = scale * (p + Z95**2 / (2 * n))
    half = scale * Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    # Rounding must not put the share itself outside where it is 0 or 1.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def mean(values: Iterable[float], seed: int = 0) -> Estimate:
    """Mean with its percentile bootstrap interval (2,000 resamples).

    Args:
      values: observations.
      seed: of the resampling.
    """
    observed = np.fromiter(values, np.float64)
    n = len(observed)
    if n == 0:
        raise ValueError('a mean of nothing')
    means = np.random.default_rng(seed).choice(observed, (RESAMPLES, n)).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(observed.mean()), float(low), float(high), n)


def is_correct(trajectory: Trajectory) -> bool:
    """Whether the answer equals a reference after normalisation; without one, no."""
    references = (trajectory.question.answer, *trajectory.question.aliases)
    return trajectory.answer is not None and exact_match(trajectory.answer, references) == 1.0


def summarize(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Works out all figures of a method on a set of questions.

    Args:
      trajectories: one a question, finished or not.

    Returns:
      A JSON-able dict: 'n', then {'value', 'low', 'high', 'n'} each for
      'accuracy' (exact match), 'anls', 'ndcg', 'recall' (of the relevant pages),
      'invalid' (share of turns), 'finished', 'zoomed' (share of trajectories that
      select a region), 'turns', and 'reward' where rewards are given; and the
      accuracies 'by_source_type' and 'by_query_type' (single-hop, multi-hop).

    Raises:
      ValueError: if there are no trajectories.
    """
    if not trajectories:
        raise ValueError('no trajectories to summarise')
    kinds = [[turn.action.kind for turn in t.turns] for t in trajectories]
    figures = {
        'accuracy': share(map(is_correct, trajectories)),
        'anls': mean(map(_anls, trajectories)),
        'ndcg': mean(ndcg(t.retrieved, t.question.page_ids) for t in trajectories),
        'recall': mean(recall(t.retrieved, t.question.page_ids) for t in trajectories),
        'invalid': share(kind is ActionKind.INVALID for turns in kinds for kind in turns),
        'finished': share(t.finished for t in trajectories),
        'zoomed': share(ActionKind.BBOX in turns for turns in kinds),
        'turns': mean(float(len(turns)) for turns in kinds),
    }
    if all('total' in t.rewards for t in trajectories):
        figures['reward'] = mean(t.rewards['total'] for t in trajectories)
    return {
        'n': len(trajectories),
        **{name: dataclasses.asdict(figure) for name, figure in figures.items()},
        'by_source_type': _accuracy_by(
            trajectories, lambda t: [part.strip() for part in t.question.source_type.split(',')]),
        'by_query_type': _accuracy_by(trajectories, lambda t: [t.question.query_type]),
    }


def _anls(trajectory: Trajectory) -> float:
    if trajectory.answer is None:
        return 0.0
    return anls(trajectory.answer, (trajectory.question.answer, *trajectory.question.aliases))


def _accuracy_by(trajectories: Sequence[Trajectory], groups_of) -> dict[str, dict[str, float]]:
    """Accuracy in each named group; a trajectory may belong to several or none."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for trajectory in trajectories:
        for name in groups_of(trajectory):
            if name:
                groups[name].append(is_correct(trajectory))
    return {name: dataclasses.asdict(share(groups[name])) for name in sorted(groups)}
