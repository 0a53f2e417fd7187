"""Fine-tuning on the policy's own right trajectories, sampled anew in every iteration.

Rejection sampling as of Yuan et al. (arXiv 2308.01825) and expert iteration: what the policy got
right is learned as if an expert had done it. This file is all of it: settings, phase, task.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vrag_jax.data.order import epoch_slice, host_rng
from vrag_jax.data.records import Question
from vrag_jax.learner import steps
from vrag_jax.learner.learner import LearnerConfig
from vrag_jax.models.common.parameters import Params
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.rollout.world import World
from vrag_jax.run.config_checks import refuse_without_iterations
from vrag_jax.run.context import RunContext
from vrag_jax.run.outputs import export_policy, write_results
from vrag_jax.run.run_config import RunConfig
from vrag_jax.run.task import Task
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.tasks.grpo import needs
from vrag_jax.training.loop import Iterations, make_learner
from vrag_jax.training.phase import Phase
from vrag_jax.training.rollouts import Collector


@dataclasses.dataclass(frozen=True)
class RejectionSftConfig:
    """The section `config.rejection_sft`.

    Attributes:
      steps: iterations; 0 leaves it to `epochs`.
      epochs: passes over the training questions.
      prompts: questions an iteration.
      group_size: trajectories a question.
      keep: right trajectories of a question that are learned, at most; no two are equal.
      mini_batches: optimiser steps an iteration.
      sampling: how trajectories are drawn.
      learner: optimiser and shapes.
      save_every: iterations between checkpoints.
    """

    steps: int = 0
    epochs: int = 0
    prompts: int = 32
    group_size: int = 8
    keep: int = 2
    mini_batches: int = 1
    sampling: SamplingConfig = SamplingConfig()
    learner: LearnerConfig = LearnerConfig(lr=1e-5)
    save_every: int = 10

    def __post_init__(self):
        for name in ('prompts', 'group_size', 'keep', 'mini_batches', 'save_every'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')


def make_phase(config: RunConfig) -> Phase:
    own = config.section(RejectionSftConfig)
    return Phase(
        'rejection_sft', steps.supervised, own.learner, own.save_every, own.steps, own.epochs,
        items=own.prompts, sequences=own.prompts * min(own.keep, own.group_size),
        updates=own.mini_batches, rollout=own.sampling,
        trajectories=own.prompts * own.group_size)


def train(context: RunContext, params: Params, world: World, questions: Sequence[Question]
          ) -> Params:
    """Returns the weights after the last iteration."""
    config, phase = context.config.section(RejectionSftConfig), make_phase(context.config)
    total = phase.iterations(len(questions))
    learner = make_learner(context, phase, params, total)
    features = context.learner_features if learner.vision_is_frozen else None
    context.clear_features()
    collector = Collector(context, phase, world, context.config.reward, questions,
                          config.group_size, learner.vision_is_frozen)
    iterations = Iterations(context, phase, learner, total)
    if iterations.left:
        learner.warm_up(features)
        collector.warm_up(learner.state.params)
    for step in iterations:
        asked = epoch_slice(len(questions), config.prompts, step, context.seed, phase.name)
        rollout = collector.collect(learner.state.params, step, [questions[i] for i in asked])
        kept = [t.sequence() for group in rollout.groups for t in right(group)[:config.keep]]
        order = host_rng(context.seed, phase.name, step).permutation(len(kept))
        metrics = {**rollout.metrics, 'kept': float(len(kept))}
        for part in np.array_split(order, config.mini_batches):
            if len(part):
                metrics |= learner.update([kept[i] for i in part], features)
            else:
                learner.skip()
        context.metrics.write(step + 1, metrics)
    return learner.state.params


def right(group: Sequence[Trajectory]) -> list[Trajectory]:
    """Returns the trajectories whose answers are right, of equal ones one."""
    return list({t.tokens.tobytes(): t for t in group if t.answer_score == 1.0}.values())


def run(context: RunContext) -> None:
    """Trains, evaluates before and after, writes the policy and the report."""
    context.announce_judge()
    world, evaluation = context.world(), context.evaluation()
    before = context.initial_params()
    after = train(context, before, world, context.corpus.questions['train'])
    export_policy(context, after, context.prompt)
    write_results(context, {'before': evaluation.policy(before, world),
                            'rejection_sft': evaluation.policy(after, world)},
                  'vrag_jax: SFT on right trajectories')


TASK = Task(run, phases=(make_phase,), settings=RejectionSftConfig, needs=needs, asks=True,
            check=lambda config: refuse_without_iterations(make_phase(config)))
