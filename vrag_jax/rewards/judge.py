"""Who says whether an answer is right: the interface of judges, and judging by a rule."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from vrag_jax.config import ConfigError
from vrag_jax.rewards.answer_matching import anls, exact_match
from vrag_jax.rewards.containment import contains
from vrag_jax.rewards.registry import ScoredEpisode, reward


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """An answer to be judged; `answer` is None where none was given."""

    question: str
    answer: str | None
    references: tuple[str, ...]


class Judgement(NamedTuple):
    """A score in [0, 1], and whether a judge model was to give it, but gave no verdict."""

    score: float
    failed: bool = False


class AnswerJudge(Protocol):
    """Scores answers in batches."""

    @property
    def name(self) -> str:
        """Which judge it is, as tables say."""

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """Returns a judgement of each request, in order; without an answer the score is 0."""
        ...


RULES: Mapping[str, Callable[[JudgeRequest], float]] = {
    'exact': lambda request: exact_match(request.answer or '', request.references),
    'contains': lambda request: contains(
        request.answer or '', request.references, request.question),
    'anls': lambda request: anls(request.answer or '', request.references),
}
"""Scores of answers in [0, 1]; all but `contains` are told more of in `rewards.answer_matching`."""


@reward('answer')
def answer(trajectory: ScoredEpisode) -> float:
    """The judge's score, which every trajectory gets before it is rewarded."""
    return trajectory.answer_score


class RuleJudge:
    """Compares answers with their references by a rule.

    Args:
      rule: of `RULES`.

    Raises:
      ValueError: if there is no such rule.
    """

    def __init__(self, rule: str = 'exact'):
        if rule not in RULES:
            raise ValueError(f'rule must be one of {tuple(RULES)}, got {rule!r}')
        self.rule = rule

    @property
    def name(self) -> str:
        return f'rule: {self.rule}'

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """Returns a judgement of each request, in order; without an answer the score is 0."""
        rule = RULES[self.rule]
        return [Judgement(0.0 if request.answer is None else rule(request))
                for request in requests]


class JudgeError(ConfigError):
    """A judge that cannot work as configured."""
