"""Fine-tunes on given conversations, or on PageWorld's experts, and saves the policy."""

from collections.abc import Sequence

from vrag_jax.config import naming
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.datasets import read_conversations
from vrag_jax.data.image_root import find_image_root
from vrag_jax.data.prompt import Prompt
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.experts.conversations import conversation_sequences
from vrag_jax.run.config_checks import refuse_without_iterations
from vrag_jax.run.context import RunContext
from vrag_jax.run.outputs import export_policy
from vrag_jax.run.prompt_choice import conversation_prompt
from vrag_jax.run.run_config import RunConfig
from vrag_jax.run.task import Task
from vrag_jax.training.sft import finetune, sft_phase


def run(context: RunContext) -> None:
    config = context.config
    if config.data.trajectories:
        sequences, prompt = read_sequences(context)
    else:
        demonstrations = context.demonstrations()
        played = demonstrations.scripted(
            context.world(), config.sft.shares, config.sft.trajectories)
        sequences, prompt = [t.sequence() for t in played], context.prompt
    tuned = finetune(
        context, sft_phase(config.sft), config.sft, context.initial_params(), sequences)
    export_policy(context, tuned, prompt)


def read_sequences(context: RunContext) -> tuple[Sequence[TokenSequence], Prompt | None]:
    """Returns the conversations of `config.data.trajectories`, and the prompt they begin with."""
    config, source = context.config, context.config.data.trajectories
    with naming('config.data.trajectories'):
        conversations = read_conversations(source)
        if not conversations:
            raise ValueError(f'{source}: holds no conversations')
        root = find_image_root(source, conversations, config.data.image_root)
    prompt = conversation_prompt(config, conversations, source)
    chat = ChatFormat(context.tokenizer, prompt or Prompt())
    with naming('config.data.trajectories'):
        return conversation_sequences(
            conversations, root, chat, context.preprocess, context.model_config,
            config.environment.limits, config.sft.learner.length), prompt


def needs(config: RunConfig) -> tuple[str, ...]:
    """Fine-tuning of a checkpoint on conversations meets no pages but those in them."""
    trajectories = ('data.trajectories',)
    return trajectories if config.policy.checkpoint else ('data.manifest', *trajectories)


def check(config: RunConfig) -> None:
    refuse_without_iterations(sft_phase(config.sft))


TASK = Task(
    run, phases=(lambda config: sft_phase(config.sft),), check=check, needs=needs, asks=True,
    searches=lambda config: not config.data.trajectories)
