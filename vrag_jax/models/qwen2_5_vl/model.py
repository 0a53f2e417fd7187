"""Qwen2.5-VL: its vision tower, and the whole model."""

from flax import nnx

from vrag_jax.models.common.config import VisionConfig
from vrag_jax.models.common.layers import Numerics, SwiGLU, residual_scale, rms_norm
from vrag_jax.models.common.model import VisionLanguageModel
from vrag_jax.models.common.vision import NORM_EPSILON, VisionTower


class Qwen25VisionTower(VisionTower):
    """RMSNorm and SwiGLU (`Qwen2_5_VisionTransformerPretrainedModel`)."""

    @staticmethod
    def norm(config: VisionConfig, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Module:
        return rms_norm(config.width, NORM_EPSILON, numerics, rngs)

    @staticmethod
    def mlp(config: VisionConfig, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Module:
        return SwiGLU(config.width, config.mlp_width, numerics, rngs, bias=True,
                      out_scale=residual_scale(config.depth))


class Qwen2_5_VL(VisionLanguageModel):
    """The whole model (`Qwen2_5_VLForConditionalGeneration`)."""

    tower = Qwen25VisionTower
