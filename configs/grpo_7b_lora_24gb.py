"""GRPO of Qwen2.5-VL-7B with LoRA on one accelerator with 24 GB.

As `grpo_3b_lora_16gb.py`, but of 7B, whose frozen decoder is kept in 8 bits (qwix, the
extra `quantization`); products are done in bfloat16. What every program of a step takes can
be seen without the accelerator, here on a chip with more memory of which 24 GB are used:

    python -m vrag_jax.main --config=configs/grpo_7b_lora_24gb.py --workdir=runs/compile \\
        --config.task=compile --config.compile.topology=v6e:1x1 --config.compile.memory_gib=22.3

(24e9 bytes are 22.3 GiB), and the run is

    python -m vrag_jax.main --config=configs/grpo_7b_lora_24gb.py --workdir=runs/grpo_7b_lora \\
        --config.policy.checkpoint=runs/sft_7b/policy --config.data.manifest=PAGES.jsonl \\
        --config.data.train_questions=TRAIN.json --config.data.eval_questions=TEST.json
"""

from ml_collections import ConfigDict

from configs.paper import lora_config


def get_config() -> ConfigDict:
    return lora_config('qwen2_5_vl_7b', slots=6, quantization='int8')
