"""The whole loop on one machine: pretrain, SFT, GRPO, evaluate, report."""

import time

from vrag_jax.evaluation.evaluate import evaluate, test_questions
from vrag_jax.evaluation.outputs import export_policy, write_results
from vrag_jax.models.common.parameters import Params
from vrag_jax.rewards.table import RewardConfig
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.run.context import RunContext
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.training.grpo import grpo
from vrag_jax.training.sft import pretrain, sft

GREEDY = SamplingConfig(temperature=0.0)
OUTCOME_ONLY = RewardConfig(weights={'answer': 1.0}, gate='')


def run(space: RunContext) -> None:
    """Trains a policy with and without the crop action and compares them.

    Rows of the table: vanilla RAG with the fine-tuned policy, the policy before
    SFT, after SFT, after GRPO, and the same training with no crop action (search
    and outcome reward only, as Search-R1-VL). After SFT and GRPO the policy is also
    measured greedily: what it does most often may be better than what it does on
    average.
    """
    config = space.config
    started = time.monotonic()
    space.judge  # noqa: B018 (says who judges)
    world, world_without_crop = space.world(), space.world(disabled=('bbox',))
    base = pretrain(space, space.initial_params())
    shares = config.sft.shares
    tuned = sft(space, base, 'sft', world, shares)
    trained = grpo(space, tuned, 'grpo', world, config.reward)
    export_policy(space, trained, space.prompt)  # Whatever becomes of what comes after.
    # The same training without crops learns from the experts that never crop.
    tuned_without_crop = sft(space, base, 'sft_no_crop', world_without_crop, {'hasty': 1.0})
    trained_without_crop = grpo(
        space, tuned_without_crop, 'grpo_no_crop', world_without_crop, OUTCOME_ONLY)

    methods: dict[str, list[Trajectory]] = {}

    def measure(name: str, params: Params, *args, **kwargs) -> None:
        methods[name] = evaluate(space, params, *args, **kwargs)

    questions = test_questions(space)
    measure('vanilla_rag', tuned, world, questions,
            vanilla_pages=config.evaluation.vanilla_pages)
    measure('no_crop', trained_without_crop, world_without_crop, questions)
    measure('pretrained', base, world, questions)
    measure('sft', tuned, world, questions)
    measure('sft_greedy', tuned, world, questions, sampling=GREEDY)
    measure('grpo_greedy', trained, world, questions, sampling=GREEDY)
    measure('grpo', trained, world, questions)

    write_results(space, methods, started, 'vrag_jax: the whole loop on PageWorld')
