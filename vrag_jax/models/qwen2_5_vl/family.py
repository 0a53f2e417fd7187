"""Qwen2.5-VL as a family of policies: Qwen2-VL with another vision tower."""

import dataclasses

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.qwen2_5_vl.config import PRESETS, Qwen25VisionConfig
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.models.qwen2_vl.family import QWEN2_VL

QWEN2_5_VL = dataclasses.replace(
    QWEN2_VL,
    model_type='qwen2_5_vl',
    model=Qwen2_5_VL,
    from_hf=lambda config: ModelConfig.from_hf(config, Qwen25VisionConfig),
    presets=PRESETS,
    processor_class='Qwen2_5_VLProcessor',
)
