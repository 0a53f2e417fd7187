"""Tracks the share of groups without any spread in their answer rewards."""

import logging
from collections.abc import Mapping, Sequence

from vrag_jax.rollout.trajectory import Trajectory

_LOG = logging.getLogger(__name__)

MOST_WITHOUT = 0.9
"""Share of groups without spread that is high."""
ITERATIONS = 3
"""Iterations in a row after which a high share is told."""


def without_spread(groups: Sequence[Sequence[Trajectory]], part: str) -> float:
    """Returns the share of groups in which a part of the reward is the same for all."""
    return sum(len({t.rewards[part] for t in group}) == 1 for group in groups) / len(groups)


class AnswerSpread:
    """Warns once when the answers' rewards of nearly all groups stay equal.

    Args:
      judge: name of the judge, for the warning.
    """

    def __init__(self, judge: str):
        self._judge = judge
        self._in_a_row = 0
        self._told = False

    def add(self, metrics: Mapping[str, float]) -> bool:
        """Takes in an iteration; returns whether it has warned.

        Args:
          metrics: with 'no_spread_answer' and 'accuracy', the mean reward of answers.
        """
        self._in_a_row = self._in_a_row + 1 if metrics['no_spread_answer'] > MOST_WITHOUT else 0
        if self._told or self._in_a_row < ITERATIONS:
            return False
        self._told = True
        _LOG.warning(
            'in %d iterations in a row, in more than %d %% of the groups all answers earned the '
            'same (%.3f on average, by %s): most of the reward is constant. If right answers count '
            'as wrong, change the judge: --config.judge.rule=contains takes sentences, '
            '--config.judge.base_url=URL --config.judge.model=NAME asks a model.',
            ITERATIONS, 100 * MOST_WITHOUT, metrics['accuracy'], self._judge)
        return True
