"""Prints what a run will hold on its devices, before anything is allocated."""

from vrag_jax.models.families import needs_tokenizer
from vrag_jax.planning.plan import plan
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.run.task import Task


def run(context: RunContext) -> None:
    """Prints the plan of a config, and writes it to `workdir/plan.txt`."""
    policy = context.config.policy
    from_scratch = needs_tokenizer(policy.preset) and not policy.checkpoint
    text = str(plan(context.config, context.phases, context.tokenizer if from_scratch else None))
    (context.workdir / 'plan.txt').write_text(text + '\n')
    print(text)


def needs(config: RunConfig) -> tuple[str, ...]:
    """Nothing: sizes can be planned before weights and pages are there."""
    return ()


TASK = Task(run, needs=needs, searches=lambda config: False)
