"""GRPO: roll groups out, score them, update the policy."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vrag_jax.data.order import epoch_slice, host_rng
from vrag_jax.data.records import Question
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.learner import steps
from vrag_jax.learner.learner import Learner
from vrag_jax.learner.losses import DRIFT
from vrag_jax.learner.variants import ADVANTAGES
from vrag_jax.models.common.parameters import Params
from vrag_jax.parallel.distributed import is_main
from vrag_jax.rewards.table import RewardConfig
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.rollout.world import World
from vrag_jax.training.answer_spread import AnswerSpread
from vrag_jax.training.context import TrainingContext
from vrag_jax.training.loop import Iterations, make_learner
from vrag_jax.training.overlap import RolloutAhead
from vrag_jax.training.phase import Phase
from vrag_jax.training.phase_configs import GrpoConfig
from vrag_jax.training.rollouts import Collector, Rollout


def grpo_phase(config: GrpoConfig, name: str = 'grpo') -> Phase:
    """Returns the phase of GRPO."""
    trajectories = config.prompts * config.group_size
    scored = {'old': config.old_source == 'learner', 'reference': bool(config.loss.kl_coef)}
    return Phase(
        name, steps.grpo(config.loss, old_is_current=config.old_is_current), config.learner,
        config.save_every, config.steps, config.epochs, items=config.prompts,
        sequences=trajectories, updates=config.mini_batches,
        temperature=config.sampling.temperature,
        # The ratio is one of policies: with dropout it would be that of what is dropped, too.
        dropout=False,
        scored=tuple(whose for whose, is_scored in scored.items() if is_scored),
        rollout=config.sampling, trajectories=trajectories, overlap=config.overlap)


def grpo(context: TrainingContext, phase: Phase, config: GrpoConfig, params: Params, world: World,
         reward: RewardConfig, questions: Sequence[Question]) -> Params:
    """Trains with group-relative policy optimisation.

    Args:
      context: the run.
      phase: see `grpo_phase`.
      config: the rest of the settings.
      params: weights to start from; they are the frozen reference, too.
      world: where the episodes take place.
      reward: what trajectories earn.
      questions: to train on.

    Returns:
      The weights after the last iteration.
    """
    total = phase.iterations(len(questions))
    learner = make_learner(context, phase, params, total)
    features = context.learner_features if learner.vision_is_frozen else None
    context.clear_features()
    collector = Collector(context, phase, world, reward, questions, config.group_size,
                          learner.vision_is_frozen, config.dynamic_sampling)
    spread = AnswerSpread(context.judge.name)
    iterations = Iterations(context, phase, learner, total)
    if iterations.left:
        learner.warm_up(features, params if phase.scored else None)
        collector.warm_up(learner.state.params)

    def prompts(step: int) -> list[Question]:
        return [questions[i] for i in epoch_slice(
            len(questions), config.prompts, step, context.seed, phase.name)]

    with RolloutAhead(collector, context.for_sampling) as ahead:
        for step in iterations:
            rollout = ahead.pop(step) or collector.collect(
                learner.state.params, step, prompts(step))
            # A checkpoint holds no rollout, so none is under way when it is saved.
            if phase.overlap and step + 1 < total and not phase.saves_after(step):
                ahead.start(step + 1, learner, prompts(step + 1))
            if is_main():
                spread.add(rollout.metrics)
            metrics = update(learner, params, rollout, config, features,
                             host_rng(context.seed, phase.name, step))
            context.metrics.write(step + 1, metrics | rollout.metrics)
    return learner.state.params


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


def _is_masked(trajectory: Trajectory, config: GrpoConfig) -> bool:
    """Whether a trajectory counts in its group's mean, but is not trained on."""
    return ((config.mask_truncated and trajectory.truncated)
            or (config.mask_unfinished and not trajectory.finished))
