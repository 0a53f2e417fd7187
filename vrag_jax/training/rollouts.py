"""Groups of scored trajectories of the policy: what an iteration learns from."""

import dataclasses
import threading
from collections.abc import Sequence

import jax
import numpy as np

from vrag_jax.actions.action import ActionType
from vrag_jax.actions.registry import action_metrics
from vrag_jax.data.order import host_rng
from vrag_jax.data.records import Question
from vrag_jax.models.common.parameters import Params
from vrag_jax.parallel.processes import merge_shares, share
from vrag_jax.rewards.table import RewardConfig, reward_metrics
from vrag_jax.rollout.driver import episode_seed, run_policy
from vrag_jax.rollout.scoring import refuse_if_all_failed, score
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.rollout.world import World
from vrag_jax.training.answer_spread import without_spread
from vrag_jax.training.context import TrainingContext
from vrag_jax.training.phase import Phase

FAILURES_THAT_TELL = 8
"""Answers of an iteration from which on a judge that fails on all of them ends the run."""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Scored groups of an iteration.

    Attributes:
      groups: trajectories of each question, `group_size` each.
      metrics: of all trajectories that were sampled, also of those that were dropped.
    """

    groups: list[list[Trajectory]]
    metrics: dict[str, float]


class Collector:
    """Samples and scores the groups of an iteration.

    Args:
      context: the run.
      phase: whose name is part of the seeds, and which says how tokens are drawn.
      world: where the episodes take place.
      reward: what trajectories earn.
      questions: from which dropped groups are replaced.
      group_size: trajectories a question.
      keep_features: whether image features outlive an update: the vision tower is
        frozen.
      dynamic_sampling: most rounds in which groups without spread are replaced.
    """

    def __init__(self, context: TrainingContext, phase: Phase, world: World, reward: RewardConfig,
                 questions: Sequence[Question], group_size: int, keep_features: bool,
                 dynamic_sampling: int = 0):
        if phase.rollout is None:
            raise ValueError(f'phase {phase.name} does not roll out')
        self._context = context
        self._name = phase.name
        self._sampling = phase.rollout
        self._group_size = group_size
        self._rounds = dynamic_sampling
        self._world = world
        self._reward = reward
        self._questions = questions
        self._keep_features = keep_features
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ends rollouts, under way or to come, with a `CancelledError`."""
        self._cancelled.set()

    def warm_up(self, params: Params) -> None:
        """Compiles the encoder and the sampler, by running them on nothing."""
        context = self._context
        context.learner_features.warm_up(params)
        placed = context.for_sampling(params)
        context.features.warm_up(placed)
        context.sampler.warm_up(placed, context.features.buffer, self._sampling)

    def collect(self, params: Params, step: int, prompts: Sequence[Question]) -> Rollout:
        """Rolls out the groups of a step.

        With `dynamic_sampling`, groups in which all rewards are equal are dropped, and
        as many questions that the step has not had take their place, while there are some
        and for so many rounds at most (DAPO, arXiv 2503.14476). Which they are depends on
        the seed, the step and what was dropped.

        Args:
          params: the policy's weights.
          step: of the phase.
          prompts: the step's questions.
        """
        if not self._keep_features:
            self._context.clear_features()
        params = self._context.for_sampling(params)
        sampled = self._sample(params, step, 0, prompts)
        kept, everything, rounds = sampled, list(sampled), 0
        if self._rounds:
            had = {question.uid for question in prompts}
            kept, everything = _with_spread(sampled), _without_pixels(sampled)
            while len(kept) < len(prompts) and rounds < self._rounds:
                left = [question for question in self._questions if question.uid not in had]
                if not left:
                    break
                rounds += 1
                rng = host_rng(self._context.seed, f'{self._name}/round{rounds}', step)
                new = rng.choice(
                    len(left), min(len(prompts) - len(kept), len(left)), replace=False)
                asked = [left[i] for i in new.tolist()]
                had |= {question.uid for question in asked}
                sampled = self._sample(params, step, rounds, asked)
                everything += _without_pixels(sampled)
                kept += _with_spread(sampled)
        self._context.sampler.release()
        trajectories = [t for group in everything for t in group]
        refuse_if_all_failed(trajectories, self._context.judge, FAILURES_THAT_TELL)
        metrics = rollout_metrics(trajectories, self._context.actions)
        metrics |= {'no_spread': without_spread(everything, 'total'),
                    'no_spread_answer': without_spread(everything, 'answer'),
                    'rounds': float(1 + rounds)}
        return Rollout(kept, metrics)

    def _sample(self, params: Params, step: int, round_number: int,
                prompts: Sequence[Question]) -> list[list[Trajectory]]:
        size, context = self._group_size, self._context
        grouped = [question for question in prompts for _ in range(size)]
        where = (step,) if not round_number else (step, f'round{round_number}')
        seeds = [episode_seed(context.seed, self._name, *where, i)
                 for i in range(len(grouped))]
        own = share(grouped, size)
        played = run_policy(
            self._world, context.sampler, context.features, params, [grouped[i] for i in own],
            self._sampling, [seeds[i] for i in own], cancelled=self._cancelled.is_set)
        score(played, self._reward, context.judge)
        if jax.process_count() > 1:
            # The learner needs the patches, and nobody the pictures.
            played = [dataclasses.replace(t, images=[]) for t in played]
        trajectories = merge_shares(played, len(grouped), size)
        return [trajectories[i : i + size] for i in range(0, len(trajectories), size)]


def _with_spread(groups: Sequence[list[Trajectory]]) -> list[list[Trajectory]]:
    return [group for group in groups if _has_spread(group)]


def _without_pixels(groups: Sequence[list[Trajectory]]) -> list[list[Trajectory]]:
    """Groups for the metrics: rounds over rounds of images would fill the host's memory."""
    return [[dataclasses.replace(t, images=[], processed=[]) for t in group] for group in groups]


def _has_spread(group: Sequence[Trajectory]) -> bool:
    return len({t.rewards['total'] for t in group}) > 1


def rollout_metrics(
    trajectories: Sequence[Trajectory], actions: Sequence[ActionType]
) -> dict[str, float]:
    """Means over trajectories: rewards, turns, lengths, actions."""
    taken = [turn.action for t in trajectories for turn in t.turns]
    return {
        **reward_metrics([t.rewards for t in trajectories]),
        'finished': float(np.mean([t.finished for t in trajectories])),
        'turns': float(np.mean([len(t.turns) for t in trajectories])),
        'length': float(np.mean([len(t.tokens) for t in trajectories])),
        'judge_failures': float(sum(t.judge_failed for t in trajectories)),
        'invalid': float(np.mean([action.kind == 'invalid' for action in taken])),
        **action_metrics(actions, taken),
        'tokens_sampled': float(sum(t.loss_mask.sum() for t in trajectories)),
    }
