"""Tasks on the user's own pages and questions: SFT, GRPO, evaluation."""

import time
from collections.abc import Sequence
from pathlib import Path

from vrag_jax.config import ConfigError, naming
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.datasets import read_conversations
from vrag_jax.data.image_root import find_image_root
from vrag_jax.data.prompt import Prompt
from vrag_jax.data.records import Conversation
from vrag_jax.evaluation.evaluate import evaluate, test_questions
from vrag_jax.evaluation.outputs import export_policy, write_results
from vrag_jax.experts.conversations import conversation_sequences
from vrag_jax.models.common.parameters import Params
from vrag_jax.run.context import RunContext
from vrag_jax.run.corpus import report_retrieval
from vrag_jax.run.prompt import conversation_prompt
from vrag_jax.training.grpo import grpo
from vrag_jax.training.sft import (
    evidence_trajectories,
    expert_trajectories,
    finetune,
)


def run_sft(space: RunContext) -> None:
    """Fine-tunes on given conversations, or on PageWorld's experts; saves the policy."""
    config = space.config
    prompt: Prompt | None
    if config.data.trajectories:
        source = config.data.trajectories
        with naming('config.data.trajectories'):
            conversations = read_conversations(source)
            if not conversations:
                raise ValueError(f'{source}: holds no conversations')
        root = _image_root(source, conversations, config.data.image_root)
        prompt = conversation_prompt(config, conversations, source)
        chat = ChatFormat(space.tokenizer, prompt or Prompt())
        with naming('config.data.trajectories'):
            sequences = conversation_sequences(
                conversations, root, chat, space.preprocess, space.model_config,
                config.environment.limits, config.sft.learner.length)
    else:
        prompt = space.prompt
        sequences = [t.sequence() for t in expert_trajectories(
            space, space.world(), config.sft.shares, config.sft.trajectories)]
    export_policy(space, finetune(space, space.initial_params(), 'sft', sequences), prompt)


def _image_root(source: str, conversations: Sequence[Conversation], given: str) -> Path:
    try:
        return find_image_root(source, conversations, given)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f'config.data.trajectories: {error}') from error


def run_grpo(space: RunContext) -> None:
    """Trains with GRPO, evaluates before and after, writes the report and the policy.

    With `evidence_sft` SFT on an expert that knows the evidence boxes comes first.
    """
    started = time.monotonic()
    space.judge  # noqa: B018 (says who judges)
    quality = report_retrieval(space.corpus)
    world, questions = space.world(), test_questions(space)
    before = space.initial_params()
    if space.config.evidence_sft:
        sequences = [t.sequence() for t in evidence_trajectories(space, world)]
        before = finetune(space, before, 'sft', sequences)
    after = grpo(space, before, 'grpo', world, space.config.reward)
    export_policy(space, after, space.prompt)  # Whatever becomes of the evaluation.
    write_results(space, {
        'before': evaluate(space, before, world, questions),
        'grpo': evaluate(space, after, world, questions),
    }, started, 'vrag_jax: GRPO', quality)


def run_evaluate(space: RunContext) -> None:
    """Evaluates the policy of `config.policy.checkpoint`, and vanilla RAG with it."""
    started = time.monotonic()
    space.judge  # noqa: B018 (says who judges)
    params: Params = space.initial_params()
    world, questions = space.world(), test_questions(space)
    write_results(space, {
        'vanilla_rag': evaluate(
            space, params, world, questions,
            vanilla_pages=space.config.evaluation.vanilla_pages),
        'policy': evaluate(space, params, world, questions),
    }, started, 'vrag_jax: evaluation')
