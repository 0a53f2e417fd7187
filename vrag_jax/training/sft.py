"""Training on given sequences: pretraining on exercises, supervised fine-tuning."""

from collections.abc import Sequence

from vrag_jax.data.order import epoch_slice
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.learner import steps
from vrag_jax.models.common.parameters import Params
from vrag_jax.training.context import TrainingContext
from vrag_jax.training.loop import Iterations, make_learner
from vrag_jax.training.phase import Phase
from vrag_jax.training.phase_configs import PretrainConfig, SftConfig
from vrag_jax.training.prefetch import Ahead


def pretrain_phase(config: PretrainConfig) -> Phase:
    """Returns the phase that teaches a policy with random weights to read."""
    return Phase(
        'pretrain', steps.supervised, config.learner, config.save_every, steps=config.steps,
        sequences=sum(config.exercises(config.steps - 1)) if config.steps else 1)


def sft_phase(config: SftConfig, name: str = 'sft') -> Phase:
    """Returns the phase of supervised fine-tuning."""
    return Phase(
        name, steps.supervised, config.learner, config.save_every, config.steps, config.epochs,
        items=config.sequences, sequences=config.sequences)


def pretrain(context: TrainingContext, phase: Phase, params: Params,
             exercises: Sequence[list[TokenSequence]]) -> Params:
    """Trains on exercises that are made anew for every step.

    Args:
      context: the run.
      phase: see `pretrain_phase`.
      params: initial weights.
      exercises: those of each step; made when they are asked for.

    Returns:
      The weights after the last step.
    """
    learner = make_learner(context, phase, params, phase.steps)
    iterations = Iterations(context, phase, learner, phase.steps)
    if iterations.left:
        learner.warm_up()
    with Ahead(exercises, lambda step: [step], phase.steps, threads=1, steps=1) as prepared:
        for step in iterations:
            [sequences] = prepared(step)
            context.metrics.write(step + 1, learner.update(sequences))
    return learner.state.params


def finetune(context: TrainingContext, phase: Phase, config: SftConfig, params: Params,
             sequences: Sequence[TokenSequence]) -> Params:
    """Fine-tunes on sequences.

    Args:
      context: the run.
      phase: see `sft_phase`.
      config: who prepares the sequences, and how far ahead.
      params: weights to start from.
      sequences: what is learned, in epochs of random order; made when they are asked for,
        by several threads, or there already.

    Returns:
      The weights after the last step.
    """
    total = phase.iterations(len(sequences))
    learner = make_learner(context, phase, params, total)
    features = context.learner_features if learner.vision_is_frozen else None
    context.clear_features()
    iterations = Iterations(context, phase, learner, total)
    if iterations.left:
        learner.warm_up(features)
        if features is not None:
            features.warm_up(learner.state.params)

    def order(step: int) -> list[int]:
        return epoch_slice(len(sequences), config.sequences, step, context.seed, phase.name)

    with Ahead(sequences, order, total, config.prepare_threads, config.prepare_ahead) as prepared:
        for step in iterations:
            context.metrics.write(step + 1, learner.update(prepared(step), features))
    return learner.state.params
