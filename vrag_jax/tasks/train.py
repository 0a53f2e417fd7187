"""The three training phases: pretraining, SFT on expert trajectories, GRPO."""

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
from vrag_jax.learner.advantages import group_normalised
from vrag_jax.learner.learner import Learner, LearnerConfig
from vrag_jax.models.parameters import Params
from vrag_jax.rewards.combine import RewardWeights
from vrag_jax.rollout.driver import World, episode_seed, run_expert, run_policy
from vrag_jax.rollout.scoring import score
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.tasks.phase import host_rng, run_phase
from vrag_jax.tasks.workspace import Workspace

_LOG = logging.getLogger(__name__)


def pretrain(space: Workspace, params: Params) -> Params:
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

    learner = _learner(space, params, config.learner, steps.supervised, config.steps)
    run_phase(
        'pretrain', learner, _directory(space, 'pretrain'), space.config.seed, config.steps,
        prepare, lambda _, sequences: learner.update(sequences), space.metrics,
        config.save_every, warm_up=learner.warm_up)
    return learner.state.params


def expert_trajectories(
    space: Workspace, world: World, shares: Mapping[str, float], count: int
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


def evidence_trajectories(space: Workspace, world: World) -> list[Trajectory]:
    """Plays the expert that knows the evidence boxes of the training questions.

    Returns:
      Trajectories with the right answer, in the order of the questions.
    """
    questions = [q for q in space.corpus.questions['train'] if q.evidence]
    trajectories = play(space, world, questions, EvidenceExpert())
    _LOG.info('evidence expert: %d of %d trajectories are right', len(trajectories),
              len(questions))
    return trajectories


def play(space: Workspace, world: World, questions: Sequence[Question],
         expert: ScriptedExpert | EvidenceExpert) -> list[Trajectory]:
    """Lets an expert play one episode a question; returns those answered right."""
    trajectories = run_expert(
        world, questions,
        lambda question, episode: expert.act(question, ExpertState.of(episode)),
        space.config.sampler.max_length)
    score(trajectories, space.config.reward, space.judge)
    return [t for t in trajectories if t.rewards['answer'] == 1.0]


def sft(space: Workspace, params: Params, name: str, world: World,
        shares: Mapping[str, float]) -> Params:
    """Fine-tunes on trajectories of scripted experts; see `finetune`."""
    trajectories = expert_trajectories(space, world, shares, space.config.sft.trajectories)
    return finetune(space, params, name, [t.sequence() for t in trajectories])


def finetune(space: Workspace, params: Params, name: str,
             sequences: Sequence[TokenSequence]) -> Params:
    """Fine-tunes on sequences.

    Args:
      space: the run.
      params: weights to start from.
      name: of the phase, for metrics and checkpoints.
      sequences: what is learned, in epochs of random order.

    Returns:
      The weights after the last step.
    """
    config = space.config.sft
    total = total_steps(config.steps, config.epochs, config.sequences, len(sequences))
    learner = _learner(space, params, config.learner, steps.supervised, total)
    features = space.features if learner.vision_is_frozen else None
    space.features.clear()

    def prepare(step: int) -> list[TokenSequence]:
        return [sequences[i] for i in _epoch_slice(
            len(sequences), config.sequences, step, space.config.seed, name)]

    run_phase(
        name, learner, _directory(space, name), space.config.seed, total, prepare,
        lambda _, batch: learner.update(batch, features), space.metrics, config.save_every,
        warm_up=lambda: learner.warm_up(features), on_save=space.features.clear)
    return learner.state.params


def grpo(space: Workspace, params: Params, name: str, world: World,
         reward: RewardWeights) -> Params:
    """Trains with group-relative policy optimisation.

    Args:
      space: the run.
      params: weights to start from; they are the frozen reference, too.
      name: of the phase, for metrics and checkpoints.
      world: where the episodes take place.
      reward: weights of the parts of the reward.

    Returns:
      The weights after the last iteration.
    """
    config = space.config.grpo
    questions = space.corpus.questions['train']
    total = total_steps(config.steps, config.epochs, config.prompts, len(questions))
    learner = _learner(space, params, space.config.learner, steps.grpo(config.loss),
                       total * config.mini_batches, config.sampling.temperature)
    features = space.features if learner.vision_is_frozen else None
    space.features.clear()

    def warm_up() -> None:
        learner.warm_up(features, params if config.loss.kl_coef else None)
        space.features.warm_up(learner.state.params)
        space.sampler.warm_up(learner.state.params, space.features.buffer, config.sampling)

    def prepare(step: int) -> list[Question]:
        return [questions[i] for i in _epoch_slice(
            len(questions), config.prompts, step, space.config.seed, name)]

    def iterate(step: int, prompts: list[Question]) -> Mapping[str, float]:
        grouped = [q for q in prompts for _ in range(config.group_size)]
        seeds = [episode_seed(space.config.seed, name, step, i) for i in range(len(grouped))]
        trajectories = run_policy(
            world, space.sampler, space.features, learner.state.params, grouped,
            config.sampling, seeds)
        score(trajectories, reward, space.judge)
        totals = np.array([t.rewards['total'] for t in trajectories])
        advantages = group_normalised(totals.reshape(-1, config.group_size)).reshape(-1)
        sequences = _rl_sequences(
            learner, params, trajectories, advantages, features, config.loss.kl_coef)
        order = host_rng(space.config.seed, name, step).permutation(len(sequences))
        metrics: dict[str, float] = {}
        for part in np.array_split(order, config.mini_batches):
            values = learner.update([sequences[i] for i in part], features)
            for key, value in values.items():
                share = 1 if key == 'tokens' else 1 / config.mini_batches
                metrics[key] = metrics.get(key, 0.0) + value * share
            if features is None:
                space.features.clear()
        return metrics | rollout_metrics(trajectories)

    run_phase(
        name, learner, _directory(space, name), space.config.seed, total, prepare,
        iterate, space.metrics, config.save_every, updates_per_step=config.mini_batches,
        warm_up=warm_up, on_save=space.features.clear)
    return learner.state.params


def _rl_sequences(learner: Learner, reference: Params, trajectories: Sequence[Trajectory],
                  advantages: np.ndarray, features, kl_coef: float) -> list[TokenSequence]:
    """Adds advantages, the sampler's log-probs and the reference's to trajectories."""
    plain = [t.sequence() for t in trajectories]
    ref = (learner.logprobs(reference, plain, features) if kl_coef
           else [t.logprobs for t in trajectories])
    return [
        t.sequence(float(advantage), t.logprobs, ref_logprobs)
        for t, advantage, ref_logprobs in zip(trajectories, advantages, ref, strict=True)
    ]


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over trajectories: parts of the reward, turns, lengths, invalid actions."""
    actions = [turn.action for t in trajectories for turn in t.turns]
    parts = {key: float(np.mean([t.rewards[key] for t in trajectories]))
             for key in ('total', 'answer', 'retrieval', 'pattern')}
    return {
        'reward': parts.pop('total'),
        'accuracy': parts.pop('answer'),
        **{f'reward_{key}': value for key, value in parts.items()},
        'finished': float(np.mean([t.finished for t in trajectories])),
        'turns': float(np.mean([len(t.turns) for t in trajectories])),
        'length': float(np.mean([len(t.tokens) for t in trajectories])),
        'invalid': float(np.mean([a.kind.name == 'INVALID' for a in actions])),
        'crops': float(np.mean([a.kind.name == 'BBOX' for a in actions])),
        'tokens_sampled': float(sum(t.loss_mask.sum() for t in trajectories)),
    }


def total_steps(steps: int, epochs: int, size: int, count: int) -> int:
    """Steps of a phase: as given, or as many as `epochs` over `count` items take.

    Args:
      steps: what the config gives; 0 leaves it to the epochs.
      epochs: passes over the items.
      size: items a step.
      count: items.
    """
    return steps or -(-epochs * count // size)


def _learner(space: Workspace, params: Params, config: LearnerConfig, loss, total: int,
             temperature: float = 1.0) -> Learner:
    return Learner(space.graphdef, params, space.model_config, config, loss, max(1, total),
                   space.mesh, temperature)


def _directory(space: Workspace, name: str) -> Path:
    return space.workdir / 'checkpoints' / name


def _epoch_slice(count: int, size: int, step: int, seed: int, name: str) -> list[int]:
    """Indices of the step's items: epochs in an order of their own, one after the other."""
    out: list[int] = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, count)
        out.append(int(_epoch_order(count, seed, name, epoch)[place]))
    return out


def _epoch_order(count: int, seed: int, name: str, epoch: int) -> np.ndarray:
    return host_rng(seed, f'{name}/order', epoch).permutation(count)
