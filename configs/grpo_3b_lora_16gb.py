"""GRPO of Qwen2.5-VL-3B with LoRA on one accelerator with 16 GB.

As `grpo_3b.py`, but adapters of rank 32 on all matrices of the decoder are trained instead
of the decoder, with a rate that suits them, beside a base in bfloat16; the reference policy
is the base itself. `workdir/policy` is the merged policy, `workdir/adapter` the adapters
alone, in PEFT's format.

What every program of a step takes can be seen without the accelerator:

    python -m vrag_jax.main --config=configs/grpo_3b_lora_16gb.py --workdir=runs/compile \\
        --config.task=compile --config.compile.topology=v5e:1x1

and the run is

    python -m vrag_jax.main --config=configs/grpo_3b_lora_16gb.py --workdir=runs/grpo_3b_lora \\
        --config.policy.checkpoint=runs/sft_3b/policy --config.data.manifest=PAGES.jsonl \\
        --config.data.train_questions=TRAIN.json --config.data.eval_questions=TEST.json
"""

from ml_collections import ConfigDict

from configs.paper import lora_config


def get_config() -> ConfigDict:
    return lora_config('qwen2_5_vl_3b', slots=8)
