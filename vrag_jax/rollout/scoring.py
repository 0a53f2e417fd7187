"""Rewards of finished trajectories."""

from collections.abc import Sequence

from vrag_jax.rewards.judge import AnswerJudge, JudgeError, JudgeRequest
from vrag_jax.rewards.registry import REWARDS
from vrag_jax.rewards.table import RewardConfig, combine
from vrag_jax.rollout.trajectory import Trajectory


def score(
    trajectories: Sequence[Trajectory], config: RewardConfig, judge: AnswerJudge
) -> None:
    """Fills in `answer_score`, `judge_failed` and `rewards` of every trajectory.

    Args:
      trajectories: finished ones.
      config: which rewards, and what each counts.
      judge: judges all answers in one batch.

    Raises:
      ValueError: if a reward is outside [0, 1].
    """
    judgements = judge.judge([
        JudgeRequest(t.question.query, t.answer, (t.question.answer, *t.question.aliases))
        for t in trajectories
    ])
    for trajectory, judgement in zip(trajectories, judgements, strict=True):
        trajectory.answer_score, trajectory.judge_failed = judgement
    columns = [REWARDS[name](trajectories) for name in config.names]
    for trajectory, *values in zip(trajectories, *columns, strict=True):
        rewards = dict(zip(config.names, map(float, values), strict=True))
        trajectory.rewards = combine(config, rewards)


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
