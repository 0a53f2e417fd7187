"""Rewards of finished trajectories."""

from collections.abc import Sequence

from vrag_jax.rewards.combine import RewardWeights, combine
from vrag_jax.rewards.judge import AnswerJudge, JudgeError, JudgeRequest
from vrag_jax.rewards.pattern import pattern_reward
from vrag_jax.rewards.retrieval import ndcg
from vrag_jax.rollout.trajectory import Trajectory


def score(
    trajectories: Sequence[Trajectory], weights: RewardWeights, judge: AnswerJudge
) -> None:
    """Fills in `rewards` and `judge_failed` of every trajectory.

    Args:
      trajectories: finished ones.
      weights: weights of retrieval, answer and pattern.
      judge: judges all answers in one batch.
    """
    judgements = judge.judge([
        JudgeRequest(t.question.query, t.answer, (t.question.answer, *t.question.aliases))
        for t in trajectories
    ])
    for trajectory, judgement in zip(trajectories, judgements, strict=True):
        trajectory.judge_failed = judgement.failed
        trajectory.rewards = combine(
            weights,
            retrieval=ndcg(trajectory.retrieved, set(trajectory.question.page_ids)),
            answer=judgement.score,
            pattern=pattern_reward([turn.action for turn in trajectory.turns]),
        )


def refuse_if_all_failed(
    trajectories: Sequence[Trajectory], judge: AnswerJudge, at_least: int = 1
) -> None:
    """Raises a JudgeError if the judge model gave no verdict on any of the answers.

    Args:
      trajectories: scored ones, of all processes.
      judge: has scored them.
      at_least: answers that it takes to tell: of a few all may fail by chance.
    """
    answered = [t for t in trajectories if t.answer is not None]
    if len(answered) >= max(1, at_least) and all(t.judge_failed for t in answered):
        raise JudgeError(f'config.judge: {judge.name} gave no verdict on any of '
                         f'{len(answered)} answers; the log says why')
