"""Trains with GRPO, evaluates before and after, writes the report and the policy."""

from vrag_jax.run.config_checks import refuse_without_iterations
from vrag_jax.run.context import RunContext
from vrag_jax.run.corpus import report_retrieval
from vrag_jax.run.outputs import export_policy, write_results
from vrag_jax.run.run_config import RunConfig
from vrag_jax.run.task import Task
from vrag_jax.training.grpo import grpo, grpo_phase
from vrag_jax.training.sft import finetune, sft_phase


def run(context: RunContext) -> None:
    """Runs it; with `evidence_sft`, SFT on an expert that knows the evidence boxes comes first."""
    config = context.config
    context.announce_judge()
    quality = report_retrieval(context.corpus)
    world, evaluation = context.world(), context.evaluation()
    before = context.initial_params()
    if config.evidence_sft:
        played = context.demonstrations().with_evidence(world)
        before = finetune(context, sft_phase(config.sft), config.sft, before,
                          [t.sequence() for t in played])
    after = grpo(context, grpo_phase(config.grpo), config.grpo, before, world, config.reward,
                 context.corpus.questions['train'])
    export_policy(context, after, context.prompt)  # Whatever becomes of the evaluation.
    write_results(context, {
        'before': evaluation.policy(before, world),
        'grpo': evaluation.policy(after, world),
    }, 'vrag_jax: GRPO', quality)


def needs(config: RunConfig) -> tuple[str, ...]:
    return ('data.manifest', 'data.train_questions')


def check(config: RunConfig) -> None:
    refuse_without_iterations(grpo_phase(config.grpo))


TASK = Task(
    run, phases=(lambda config: sft_phase(config.sft), lambda config: grpo_phase(config.grpo)),
    check=check, needs=needs, asks=True)
