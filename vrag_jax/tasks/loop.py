"""The whole loop on one machine: pretrain, SFT, GRPO, evaluate, report."""

import random
from collections.abc import Mapping

from vrag_jax.data.mapped import MappedSequence
from vrag_jax.experts.pretraining import PretrainingExercises
from vrag_jax.models.common.parameters import Params
from vrag_jax.rewards.table import RewardConfig
from vrag_jax.rollout.world import World
from vrag_jax.run.context import RunContext
from vrag_jax.run.outputs import export_policy, write_results
from vrag_jax.run.task import Task
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.training.grpo import grpo, grpo_phase
from vrag_jax.training.sft import finetune, pretrain, pretrain_phase, sft_phase

GREEDY = SamplingConfig(temperature=0.0)
OUTCOME_ONLY = RewardConfig(weights={'answer': 1.0}, gate='')


def run(context: RunContext) -> None:
    """Trains a policy with and without the crop action and compares them.

    Rows of the table: vanilla RAG with the fine-tuned policy, the policy before
    SFT, after SFT, after GRPO, and the same training with no crop action (search
    and outcome reward only, as Search-R1-VL). After SFT and GRPO the policy is also
    measured greedily: what it does most often may be better than what it does on
    average.
    """
    config = context.config
    context.announce_judge()
    world, world_without_crop = context.world(), context.world(disabled=('bbox',))
    base = run_pretraining(context, world)
    tuned = run_sft(context, 'sft', base, world, config.sft.shares)
    trained = run_grpo(context, 'grpo', tuned, world, config.reward)
    export_policy(context, trained, context.prompt)  # Whatever becomes of what comes after.
    # The same training without crops learns from the experts that never crop.
    tuned_without_crop = run_sft(
        context, 'sft_no_crop', base, world_without_crop, {'hasty': 1.0})
    trained_without_crop = run_grpo(
        context, 'grpo_no_crop', tuned_without_crop, world_without_crop, OUTCOME_ONLY)

    evaluation = context.evaluation()
    write_results(context, {
        'vanilla_rag': evaluation.vanilla_rag(tuned, world),
        'no_crop': evaluation.policy(trained_without_crop, world_without_crop),
        'pretrained': evaluation.policy(base, world),
        'sft': evaluation.policy(tuned, world),
        'sft_greedy': evaluation.policy(tuned, world, GREEDY),
        'grpo_greedy': evaluation.policy(trained, world, GREEDY),
        'grpo': evaluation.policy(trained, world),
    }, 'vrag_jax: the whole loop on PageWorld', {'sft_trajectories': config.sft.trajectories})


def run_pretraining(context: RunContext, world: World) -> Params:
    """Teaches a policy with random weights to search, to read crops and to find panels."""
    config, corpus = context.config, context.corpus
    exercises = PretrainingExercises(
        world, corpus.store, corpus.layouts, corpus.questions['train'],
        max_length=min(config.sampler.max_length, config.pretrain.learner.length))
    of_steps = MappedSequence(range(config.pretrain.steps), lambda step, _: exercises.sample(
        random.Random(f'{config.seed}/pretrain/{step}'), *config.pretrain.exercises(step)))
    return pretrain(context, pretrain_phase(config.pretrain), context.initial_params(), of_steps)


def run_sft(context: RunContext, name: str, params: Params, world: World,
            shares: Mapping[str, float]) -> Params:
    """Fine-tunes on trajectories of scripted experts."""
    config = context.config.sft
    played = context.demonstrations().scripted(world, shares, config.trajectories)
    return finetune(context, sft_phase(config, name), config, params,
                    [t.sequence() for t in played])


def run_grpo(context: RunContext, name: str, params: Params, world: World,
             reward: RewardConfig) -> Params:
    """Trains with GRPO."""
    config = context.config.grpo
    return grpo(context, grpo_phase(config, name), config, params, world, reward,
                context.corpus.questions['train'])


TASK = Task(
    run, asks=True,
    phases=(lambda config: pretrain_phase(config.pretrain), lambda config: sft_phase(config.sft),
            lambda config: grpo_phase(config.grpo)))
