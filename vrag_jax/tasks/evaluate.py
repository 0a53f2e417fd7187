"""Evaluates the policy of `config.policy.checkpoint`, and vanilla RAG with it."""

from vrag_jax.run.context import RunContext
from vrag_jax.run.outputs import write_results
from vrag_jax.run.run_config import RunConfig
from vrag_jax.run.task import Task


def run(context: RunContext) -> None:
    context.announce_judge()
    params = context.initial_params()
    world, evaluation = context.world(), context.evaluation()
    write_results(context, {
        'vanilla_rag': evaluation.vanilla_rag(params, world),
        'policy': evaluation.policy(params, world),
    }, 'vrag_jax: evaluation')


def needs(config: RunConfig) -> tuple[str, ...]:
    return ('data.manifest', 'data.eval_questions')


TASK = Task(run, needs=needs, asks=True)
