"""SFT of Qwen2.5-VL-3B on expert trajectories, with the paper's settings.

Three epochs over about 3,000 conversations, 32 a step, lr 1e-5 with cosine decay
after a warm-up of a tenth, sequences of up to 16,384 tokens, vision tower and
projector frozen. The policy is saved in WORKDIR/policy; `grpo_3b.py` goes on
from it.

Needs eight accelerators with 80 GB (`--config.task=plan` prints what they hold),
a checkpoint directory of Qwen2.5-VL-3B-Instruct, and conversations in ShareGPT
format with their images. Paths are relative to where the command runs.

    python -m vrag_jax.main --config=configs/sft_3b.py --workdir=runs/sft_3b \
        --config.policy.checkpoint=PATH --config.data.trajectories=FILE.json
"""

from ml_collections import ConfigDict

from configs.paper import sft_config


def get_config() -> ConfigDict:
    return sft_config('qwen2_5_vl_3b', mesh={'fsdp': 4, 'tensor': 2}, rows=4)
