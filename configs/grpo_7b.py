"""GRPO of Qwen2.5-VL-7B after SFT, with the paper's settings.

One epoch over the training questions: 32 questions an iteration, five
trajectories each of at most four turns and a closing one, reward
0.2 NDCG + 0.7 answer + 0.1 pattern, lr 1e-6 after five iterations of warm-up, clip 0.2,
k3 KL 0.01 to the first policy, averaged by sequence. The vision tower is frozen, which the
authors' script does not do; `--config.grpo.learner.frozen=` trains it (docs/RELEASED.md). The paper
reports 57.1 % for this policy over its three benchmarks with ColQwen2 as retriever.

The pattern reward is for a cold start. After SFT the paper drops it; the weights
must still sum to 1:

    --config.reward.weights.answer=0.8 --config.reward.weights.pattern=0.0

Pages are found by their words unless the paper's retriever is given, a ColQwen2, whole or an
adapter beside its base: `--config.retrieval.colqwen2=checkpoints/colqwen2-v1.0` (see
docs/RETRIEVAL.md).

Needs eight accelerators with 80 GB (`--config.task=plan` prints what they hold),
the policy of `sft_7b.py` (or a checkpoint directory of Qwen2.5-VL-7B-Instruct),
a manifest of the pages and questions to train and to evaluate on. Answers are
judged by exact match after normalisation, so that a sentence earns nothing; by a rule that reads
sentences with `--config.judge.rule=contains`; by a model, as in the paper, with
`--config.judge.base_url=URL --config.judge.model=NAME`: the only thing it reaches.

    python -m vrag_jax.main --config=configs/grpo_7b.py --workdir=runs/grpo_7b \
        --config.policy.checkpoint=runs/sft_7b/policy --config.data.manifest=PAGES.jsonl \
        --config.data.train_questions=TRAIN.json --config.data.eval_questions=TEST.json
"""

from ml_collections import ConfigDict

from configs.paper import grpo_config


def get_config() -> ConfigDict:
    return grpo_config('qwen2_5_vl_7b', mesh={'fsdp': 2, 'tensor': 4}, rows=2)
