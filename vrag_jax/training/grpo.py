"""GRPO: roll groups out, score them, update; the next rollout may run beside the update."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vrag_jax.actions.action import ActionType
from vrag_jax.actions.registry import action_metrics
from vrag_jax.data.records import Question
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.learner import steps
from vrag_jax.learner.learner import Learner
from vrag_jax.learner.losses import DRIFT
from vrag_jax.learner.variants import ADVANTAGES
from vrag_jax.models.common.parameters import Params
from vrag_jax.parallel.distributed import is_main
from vrag_jax.parallel.processes import merge_shares, share
from vrag_jax.rewards.table import RewardConfig, reward_metrics
from vrag_jax.rollout.driver import episode_seed, run_policy
from vrag_jax.rollout.scoring import refuse_if_all_failed, score
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.rollout.world import World
from vrag_jax.run.context import RunContext
from vrag_jax.run.settings import GrpoConfig
from vrag_jax.training.answer_spread import AnswerSpread, without_spread
from vrag_jax.training.loop import host_rng, run_phase
from vrag_jax.training.sft import directory, epoch_slice, make_learner, total_steps

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


def grpo(space: RunContext, params: Params, name: str, world: World,
         reward: RewardConfig) -> Params:
    """Trains with group-relative policy optimisation.

    Args:
      space: the run.
      params: weights to start from; they are the frozen reference, too.
      name: of the phase, for metrics and checkpoints.
      world: where the episodes take place.
      reward: what trajectories earn.

    Returns:
      The weights after the last iteration.
    """
    config = space.config.grpo
    questions = space.corpus.questions['train']
    total = total_steps(config.steps, config.epochs, config.prompts, len(questions))
    loss = steps.grpo(config.loss, old_is_current=config.old_is_current)
    # The ratio is one of policies: with dropout it would be that of what is dropped, too.
    learner = make_learner(space, params, space.config.grpo.learner, loss,
                           total * config.mini_batches, config.sampling.temperature,
                           dropout=False)
    features = space.learner_features if learner.vision_is_frozen else None
    space.clear_features()
    collector = Collector(space, name, world, reward, questions, learner.vision_is_frozen)

    spread = AnswerSpread(space.judge.name)

    def warm_up() -> None:
        scored = config.loss.kl_coef or config.old_source == 'learner'
        learner.warm_up(features, params if scored else None)
        space.learner_features.warm_up(learner.state.params)
        placed = space.for_sampling(learner.state.params)
        space.features.warm_up(placed)
        space.sampler.warm_up(placed, space.features.buffer, config.sampling)

    def prepare(step: int) -> list[Question]:
        return [questions[i] for i in epoch_slice(
            len(questions), config.prompts, step, space.config.seed, name)]

    def iterate(step: int, prompts: list[Question]) -> Mapping[str, float]:
        rollout = ahead.pop(step)
        if rollout is None:
            rollout = collector.collect(learner.state.params, step, prompts)
        # A checkpoint holds no rollout, so none is under way when it is saved.
        if config.overlap and step + 1 < total and (step + 1) % config.save_every:
            ahead.start(step + 1, learner, prepare(step + 1))
        if is_main():
            spread.add(rollout.metrics)
        metrics = update(learner, params, rollout, config, features,
                         host_rng(space.config.seed, name, step))
        return metrics | rollout.metrics

    with RolloutAhead(collector, space.for_sampling) as ahead:
        run_phase(
            name, learner, directory(space, name), space.config.seed, total, prepare,
            iterate, space.metrics, config.save_every, updates_per_step=config.mini_batches,
            warm_up=warm_up, on_save=space.clear_features)
    return learner.state.params


class Collector:
    """Samples and scores the groups of an iteration.

    Args:
      space: the run.
      name: of the phase, in seeds.
      world: where the episodes take place.
      reward: what trajectories earn.
      questions: from which dropped groups are replaced.
      keep_features: whether image features outlive an update: the vision tower is
        frozen.
    """

    def __init__(self, space: RunContext, name: str, world: World, reward: RewardConfig,
                 questions: Sequence[Question], keep_features: bool):
        self._space = space
        self._config = space.config.grpo
        self._name = name
        self._world = world
        self._reward = reward
        self._questions = questions
        self._keep_features = keep_features
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ends rollouts, under way or to come, with a `CancelledError`."""
        self._cancelled.set()

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
            self._space.clear_features()
        params = self._space.for_sampling(params)
        sampled = self._sample(params, step, 0, prompts)
        kept, everything, rounds = sampled, list(sampled), 0
        if self._config.dynamic_sampling:
            had = {question.uid for question in prompts}
            kept, everything = _with_spread(sampled), _without_pixels(sampled)
            while len(kept) < len(prompts) and rounds < self._config.dynamic_sampling:
                left = [question for question in self._questions if question.uid not in had]
                if not left:
                    break
                rounds += 1
                rng = host_rng(self._space.config.seed, f'{self._name}/round{rounds}', step)
                new = rng.choice(
                    len(left), min(len(prompts) - len(kept), len(left)), replace=False)
                asked = [left[i] for i in new.tolist()]
                had |= {question.uid for question in asked}
                sampled = self._sample(params, step, rounds, asked)
                everything += _without_pixels(sampled)
                kept += _with_spread(sampled)
        self._space.sampler.release()
        trajectories = [t for group in everything for t in group]
        refuse_if_all_failed(trajectories, self._space.judge, FAILURES_THAT_TELL)
        metrics = rollout_metrics(trajectories, self._space.actions)
        metrics |= {'no_spread': without_spread(everything, 'total'),
                    'no_spread_answer': without_spread(everything, 'answer'),
                    'rounds': float(1 + rounds)}
        return Rollout(kept, metrics)

    def _sample(self, params: Params, step: int, round_number: int,
                prompts: Sequence[Question]) -> list[list[Trajectory]]:
        size, space = self._config.group_size, self._space
        grouped = [question for question in prompts for _ in range(size)]
        where = (step,) if not round_number else (step, f'round{round_number}')
        seeds = [episode_seed(space.config.seed, self._name, *where, i)
                 for i in range(len(grouped))]
        own = share(grouped, size)
        played = run_policy(
            self._world, space.sampler, space.features, params, [grouped[i] for i in own],
            self._config.sampling, [seeds[i] for i in own], cancelled=self._cancelled.is_set)
        score(played, self._reward, space.judge)
        if jax.process_count() > 1:
            # The learner needs the patches, and nobody the pictures.
            played = [dataclasses.replace(t, images=[]) for t in played]
        trajectories = merge_shares(played, len(grouped), size)
        return [trajectories[i : i + size] for i in range(0, len(trajectories), size)]


class RolloutAhead:
    """Rolls out the next iteration in a thread, with the weights before this one's update.

    What is trained on is then sampled by a policy that is one iteration older; the loss
    corrects it by the sampler's log-probs. A context manager; when it is left by an
    error, what is under way is given up.

    Args:
      collector: does it.
      for_sampling: lays a policy out for the sampler.
    """

    def __init__(self, collector: Collector, for_sampling: Callable[[Params], Params]):
        self._collector = collector
        self._for_sampling = for_sampling
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='rollout')
        self._under_way: dict[int, Future[Rollout]] = {}
        self._copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))

    def __enter__(self) -> 'RolloutAhead':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self._collector.cancel()
        self._pool.shutdown(cancel_futures=True)

    def start(self, step: int, learner: Learner, prompts: Sequence[Question]) -> None:
        """Begins the rollout of a step."""
        # The update donates the weights: what is not cast or moved for the sampler is copied.
        trainable = learner.state.trainable
        params = self._for_sampling(learner.state.params)
        donated = {path: value for path, value in params.items()
                   if path in trainable and value is trainable[path]}
        params = {**params, **self._copy(donated)}
        self._under_way[step] = self._pool.submit(
            self._collector.collect, params, step, prompts)

    def pop(self, step: int) -> Rollout | None:
        """Waits for the rollout of a step; None if it was not begun."""
        future = self._under_way.pop(step, None)
        return None if future is None else future.result()


def update(learner: Learner, reference: Params, rollout: Rollout, config: GrpoConfig,
           features, rng: np.random.Generator) -> dict[str, float]:
    """Takes the optimiser steps of an iteration.

    Args:
      learner: is changed.
      reference: the frozen policy of the KL term.
      rollout: groups to learn from; without one, steps are counted and nothing changes.
      config: how.
      features: image features where the vision tower is frozen, else None.
      rng: shuffles trajectories into mini-batches.

    Returns:
      Metrics: means over the mini-batches, and 'drift_...' of the sampler's log-probs
      from the learner's, before the weights change.
    """
    sequences, metrics = rl_sequences(learner, rollout, config, features)
    order = rng.permutation(len(sequences))
    taken = 0
    for part in np.array_split(order, config.mini_batches):
        batch = [sequences[i] for i in part if sequences[i].loss_mask[1:].any()]
        if not batch:
            learner.skip()
            continue
        values = learner.update(batch, features, left_out=len(part) - len(batch),
                                reference=reference if config.loss.kl_coef else None)
        for key, value in values.items():
            if key.startswith('drift_'):
                # Later mini-batches have other weights than the sampler had.
                if not taken and config.old_source == 'sampler':
                    metrics[key] = value
            else:
                metrics[key] = metrics.get(key, 0.0) + value
        taken += 1
    return {key: value / taken if taken and not key.startswith('drift_') and key != 'tokens'
            else value for key, value in metrics.items()}


def rl_sequences(
    learner: Learner, rollout: Rollout, config: GrpoConfig, features
) -> tuple[list[TokenSequence], dict[str, float]]:
    """Gives trajectories their advantages and old log-probs.

    Returns:
      One sequence a trajectory, and the drift of the sampler's log-probs where the
      learner has worked them out, too.
    """
    if not rollout.groups:
        return [], {}
    trajectories = [t for group in rollout.groups for t in group]
    rewards = np.array([[t.rewards['total'] for t in group] for group in rollout.groups])
    advantages = ADVANTAGES[config.advantages](rewards).reshape(-1)
    plain = [t.sequence() for t in trajectories]
    sampled = [t.logprobs for t in trajectories]
    old, metrics = sampled, {}
    if config.old_source == 'learner':
        old = learner.logprobs(learner.state.params, plain, features)
        metrics = drift(old, sampled, [s.loss_mask for s in plain])
    sequences = [
        dataclasses.replace(t.sequence(float(advantage), old_values), sampler_logprobs=t.logprobs)
        for t, advantage, old_values in zip(trajectories, advantages, old, strict=True)]
    return [
        dataclasses.replace(s, loss_mask=np.zeros_like(s.loss_mask)) if _is_masked(t, config) else s
        for s, t in zip(sequences, trajectories, strict=True)], metrics


def drift(learner: Sequence[np.ndarray], sampler: Sequence[np.ndarray],
          masks: Sequence[np.ndarray]) -> dict[str, float]:
    """Differences of the log-probs of sampled tokens: mean, largest, share over `DRIFT`.

    Args:
      learner, sampler: `[T_i]` float32 log-probs of each sequence.
      masks: `[T_i]`, positive on sampled tokens.
    """
    differences = np.concatenate([
        np.abs(a - b)[mask > 0] for a, b, mask in zip(learner, sampler, masks, strict=True)])
    return {'drift_mean': float(differences.mean()), 'drift_max': float(differences.max()),
            'drift_share': float((differences > DRIFT).mean())}


def _with_spread(groups: Sequence[list[Trajectory]]) -> list[list[Trajectory]]:
    return [group for group in groups if _has_spread(group)]


def _without_pixels(groups: Sequence[list[Trajectory]]) -> list[list[Trajectory]]:
    """Groups for the metrics: rounds over rounds of images would fill the host's memory."""
    return [[dataclasses.replace(t, images=[], processed=[]) for t in group] for group in groups]


def _has_spread(group: Sequence[Trajectory]) -> bool:
    return len({t.rewards['total'] for t in group}) > 1


def _is_masked(trajectory: Trajectory, config: GrpoConfig) -> bool:
    """Whether a trajectory counts in its group's mean, but is not trained on."""
    return ((config.mask_truncated and trajectory.truncated)
            or (config.mask_unfinished and not trajectory.finished))


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
