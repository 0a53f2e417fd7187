"""Rewards of finished trajectories."""

from collections.abc import Sequence

from vrag_jax.rewards.combine import RewardWeights, combine
from vrag_jax.rewards.judge import AnswerJudge, JudgeRequest
from vrag_jax.rewards.pattern import pattern_reward
from vrag_jax.rewards.retrieval import ndcg
from vrag_jax.rollout.trajectory import Trajectory


def score(
    trajectories: Sequence[Trajectory], weights: RewardWeights, judge: AnswerJudge
) -> None:
    """Fills in `rewards` of every trajectory.

    Args:
      trajectories: finished ones; `rewards` is replaced.
      weights: weights of retrieval, answer and pattern.
      judge: judges all answers in one batch.
    """
    answers = judge.score([
        JudgeRequest(t.question.query, t.answer, (t.question.answer, *t.question.aliases))
        for t in trajectories
    ])
    for trajectory, answer in zip(trajectories, answers, strict=True):
        trajectory.rewards = combine(
            weights,
            retrieval=ndcg(trajectory.retrieved, set(trajectory.question.page_ids)),
            answer=answer,
            pattern=pattern_reward([turn.action for turn in trajectory.turns]),
        )
