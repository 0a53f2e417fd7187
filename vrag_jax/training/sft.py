"""Training on given sequences: pretraining, and SFT on expert trajectories."""

import functools
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vrag_jax.data.records import Question
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.experts.evidence import EvidenceExpert
from vrag_jax.experts.pretraining import PretrainingExercises
from vrag_jax.experts.scripted import STYLES, ExpertState, ScriptedExpert
from vrag_jax.learner import steps
from vrag_jax.learner.learner import Learner, LearnerConfig
from vrag_jax.models.common.parameters import Params
from vrag_jax.rollout.driver import run_expert
from vrag_jax.rollout.scoring import score
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.rollout.world import World
from vrag_jax.run.context import RunContext
from vrag_jax.training.loop import host_rng, run_phase
from vrag_jax.training.prefetch import Ahead

_LOG = logging.getLogger(__name__)


def pretrain(space: RunContext, params: Params) -> Params:
    """Teaches a policy with random weights to read crops and to find panels.

    Args:
      space: the run.
      params: initial weights.

    Returns:
      The weights after the last step.
    """
    config = space.config.pretrain
    exercises = PretrainingExercises(
        space.world(), space.corpus.store, space.corpus.layouts,
        space.corpus.questions['train'],
        max_length=min(space.config.sampler.max_length, config.learner.length))

    def prepare(step: int) -> list[TokenSequence]:
        rng = random.Random(f'{space.config.seed}/pretrain/{step}')
        return exercises.sample(rng, *config.exercises(step))

    learner = make_learner(space, params, config.learner, steps.supervised, config.steps)
    run_phase(
        'pretrain', learner, directory(space, 'pretrain'), space.config.seed, config.steps,
        prepare, lambda _, sequences: learner.update(sequences), space.metrics,
        config.save_every, warm_up=learner.warm_up)
    return learner.state.params


def expert_trajectories(
    space: RunContext, world: World, shares: Mapping[str, float], count: int
) -> list[Trajectory]:
    """Samples trajectories from several experts and keeps the right ones.

    Args:
      space: the run.
      world: where the episodes take place.
      shares: share of each style of expert.
      count: episodes to play.

    Returns:
      Finished trajectories whose answers are right.
    """
    rng = host_rng(space.config.seed, 'experts', 0)
    questions = space.corpus.questions['train']
    order = [questions[i % len(questions)] for i in range(count)]
    styles = rng.choice(list(shares), size=count, p=list(shares.values()))
    kept: list[Trajectory] = []
    for style in shares:
        mine = [q for q, s in zip(order, styles, strict=True) if s == style]
        expert = ScriptedExpert(space.corpus.layouts, STYLES[style], space.config.seed)
        right = play(space, world, mine, expert)
        _LOG.info('expert %s: %d of %d trajectories are right', style, len(right), len(mine))
        kept += right
    rng.shuffle(kept)  # type: ignore[arg-type]
    return kept


def evidence_trajectories(space: RunContext, world: World) -> list[Trajectory]:
    """Plays the expert that knows the evidence boxes of the training questions.

    Returns:
      Trajectories with the right answer, in the order of the questions.
    """
    questions = [q for q in space.corpus.questions['train'] if q.evidence]
    trajectories = play(space, world, questions, EvidenceExpert())
    _LOG.info('evidence expert: %d of %d trajectories are right', len(trajectories),
              len(questions))
    return trajectories


def play(space: RunContext, world: World, questions: Sequence[Question],
         expert: ScriptedExpert | EvidenceExpert) -> list[Trajectory]:
    """Lets an expert play one episode a question; returns those answered right."""
    trajectories = run_expert(
        world, questions,
        lambda question, episode: expert.act(question, ExpertState.of(episode)),
        space.config.sampler.max_length)
    score(trajectories, space.config.reward, space.judge)
    return [t for t in trajectories if t.rewards['answer'] == 1.0]


def sft(space: RunContext, params: Params, name: str, world: World,
        shares: Mapping[str, float]) -> Params:
    """Fine-tunes on trajectories of scripted experts; see `finetune`."""
    trajectories = expert_trajectories(space, world, shares, space.config.sft.trajectories)
    return finetune(space, params, name, [t.sequence() for t in trajectories])


def finetune(space: RunContext, params: Params, name: str,
             sequences: Sequence[TokenSequence]) -> Params:
    """Fine-tunes on sequences.

    Args:
      space: the run.
      params: weights to start from.
      name: of the phase, for metrics and checkpoints.
      sequences: what is learned, in epochs of random order; made when they are asked for,
        by several threads, or there already.

    Returns:
      The weights after the last step.
    """
    config = space.config.sft
    total = total_steps(config.steps, config.epochs, config.sequences, len(sequences))
    learner = make_learner(space, params, config.learner, steps.supervised, total)
    features = space.learner_features if learner.vision_is_frozen else None
    space.clear_features()

    def warm_up() -> None:
        learner.warm_up(features)
        if features is not None:
            features.warm_up(learner.state.params)

    def order(step: int) -> list[int]:
        return epoch_slice(len(sequences), config.sequences, step, space.config.seed, name)

    with Ahead(sequences, order, total, config.prepare_threads, config.prepare_ahead) as prepare:
        run_phase(
            name, learner, directory(space, name), space.config.seed, total, prepare,
            lambda _, batch: learner.update(batch, features), space.metrics, config.save_every,
            warm_up=warm_up, on_save=space.clear_features)
    return learner.state.params


def total_steps(steps: int, epochs: int, size: int, count: int) -> int:
    """Steps of a phase: as given, or as many as `epochs` over `count` items take.

    Args:
      steps: what the config gives; 0 leaves it to the epochs.
      epochs: passes over the items.
      size: items a step.
      count: items.
    """
    return steps or -(-epochs * count // size)


def make_learner(space: RunContext, params: Params, config: LearnerConfig, loss: steps.Loss,
                 total: int, temperature: float = 1.0, dropout: bool = True) -> Learner:
    """Returns a phase's learner.

    Args:
      space: the run.
      params: weights to start from.
      config: optimiser and shapes.
      loss: what is minimised.
      total: optimiser steps of the phase.
      temperature: at which the trajectories are sampled.
      dropout: whether adapters drop inputs, as `lora.dropout` says.
    """
    return Learner(space.graphdef, params, space.model_config, config, loss, max(1, total),
                   space.mesh, temperature, space.learner_rules,
                   space.config.seed if dropout else None)


def directory(space: RunContext, name: str) -> Path:
    """Returns where a phase keeps its checkpoints."""
    return space.workdir / 'checkpoints' / name


def epoch_slice(count: int, size: int, step: int, seed: int, name: str) -> list[int]:
    """Returns indices of a step's items: epochs in an order of their own, one after the other."""
    epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), count)
    return np.concatenate([
        _epoch_order(count, seed, name, int(epoch))[places[epochs == epoch]]
        for epoch in np.unique(epochs)]).tolist()


@functools.lru_cache(maxsize=4)  # A step ends one epoch and begins the next, of two phases.
def _epoch_order(count: int, seed: int, name: str, epoch: int) -> np.ndarray:
    """Returns the order of an epoch, `[count]`; not to be written to."""
    return host_rng(seed, f'{name}/order', epoch).permutation(count)
