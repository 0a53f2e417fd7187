"""Figures of a set of held-out trajectories, each with its 95 % interval."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vrag_jax.actions.action import ActionType
from vrag_jax.actions.registry import get_actions
from vrag_jax.rewards.answer_matching import anls, exact_match, token_f1
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


RIGHT = 0.5
"""Judged score from which on an answer is shown as right."""


def judged(trajectory: Trajectory) -> float:
    """Returns the judge's score of a trajectory's answer, in [0, 1].

    Raises:
      ValueError: if the trajectory has not been scored.
    """
    if 'answer' not in trajectory.rewards:
        raise ValueError(f'question {trajectory.question.uid}: the trajectory has no scores')
    return trajectory.rewards['answer']


def is_correct(trajectory: Trajectory) -> bool:
    """Whether the judge takes the answer for right: its score is at least `RIGHT`."""
    return judged(trajectory) >= RIGHT


def score_of(values: Iterable[float]) -> Estimate:
    """Mean of scores, with the interval of a share where all of them are 0 or 1."""
    scores = list(values)
    if all(score in (0.0, 1.0) for score in scores):
        return share(score == 1.0 for score in scores)
    return mean(scores)


def summarize(trajectories: Sequence[Trajectory], actions: Sequence[ActionType] | None = None
              ) -> dict[str, Any]:
    """Works out all figures of a method on a set of questions.

    Args:
      trajectories: one a question, finished or not, scored.
      actions: of the run; None takes the default ones.

    Returns:
      A JSON-able dict: 'n', 'judge_failures' (answers on which a judge model gave no verdict),
      then {'value', 'low', 'high', 'n'} each for 'accuracy' (the judge's score), 'exact_match',
      'anls', 'f1', 'ndcg', 'recall' (of the relevant pages), 'invalid' (share of turns),
      'finished', 'turns', 'reward', and for each action with a name for it (`ActionType.used`,
      such as 'zoomed') the share of trajectories that take it;
      and the accuracies 'by_source_type' and 'by_query_type' (single-hop, multi-hop).

    Raises:
      ValueError: if there are no trajectories, or one has not been scored.
    """
    if not trajectories:
        raise ValueError('no trajectories to summarise')
    kinds = [[turn.action.kind for turn in t.turns] for t in trajectories]
    figures = {
        'accuracy': score_of(map(judged, trajectories)),
        'exact_match': share(_compared(t, exact_match) == 1.0 for t in trajectories),
        'anls': mean(_compared(t, anls) for t in trajectories),
        'f1': mean(_compared(t, token_f1) for t in trajectories),
        'ndcg': mean(ndcg(t.retrieved, t.question.page_ids) for t in trajectories),
        'recall': mean(recall(t.retrieved, t.question.page_ids) for t in trajectories),
        'invalid': share(kind == 'invalid' for turns in kinds for kind in turns),
        'finished': share(t.finished for t in trajectories),
        **{action.used: share(action.tag in turns for turns in kinds)
           for action in (get_actions() if actions is None else actions) if action.used},
        'turns': mean(float(len(turns)) for turns in kinds),
        'reward': mean(t.rewards['total'] for t in trajectories),
    }
    return {
        'n': len(trajectories),
        'judge_failures': sum(t.judge_failed for t in trajectories),
        **{name: dataclasses.asdict(figure) for name, figure in figures.items()},
        'by_source_type': _accuracy_by(
            trajectories, lambda t: [part.strip() for part in t.question.source_type.split(',')]),
        'by_query_type': _accuracy_by(trajectories, lambda t: [t.question.query_type]),
    }


def _compared(trajectory: Trajectory, measure: Callable[[str, Iterable[str]], float]) -> float:
    """How near an answer is to its references by a measure; without one 0."""
    if trajectory.answer is None:
        return 0.0
    return measure(trajectory.answer, (trajectory.question.answer, *trajectory.question.aliases))


def _accuracy_by(trajectories: Sequence[Trajectory], groups_of) -> dict[str, dict[str, float]]:
    """Accuracy in each named group; a trajectory may belong to several or none."""
    groups: dict[str, list[float]] = defaultdict(list)
    for trajectory in trajectories:
        for name in groups_of(trajectory):
            if name:
                groups[name].append(judged(trajectory))
    return {name: dataclasses.asdict(score_of(groups[name])) for name in sorted(groups)}
