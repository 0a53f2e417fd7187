"""Qwen2-VL: its vision tower, and the whole model."""

import jax
from flax import nnx

from vrag_jax.models.common.config import VisionConfig
from vrag_jax.models.common.layers import Numerics, layer_norm, linear, residual_scale
from vrag_jax.models.common.model import VisionLanguageModel
from vrag_jax.models.common.vision import NORM_EPSILON, VisionTower


class QuickGeluMlp(nnx.Module):
    """`fc2(h * sigmoid(1.702 h))` with `h = fc1(x)`, `[..., D] -> [..., D]`."""

    def __init__(self, size: int, hidden: int, numerics: Numerics, rngs: nnx.Rngs, *,
                 out_scale: float):
        self.fc1 = linear(size, hidden, numerics, rngs, bias=True)
        self.fc2 = linear(hidden, size, numerics, rngs, bias=True, init_scale=out_scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.fc1(x)
        return self.fc2(hidden * jax.nn.sigmoid(1.702 * hidden))


class Qwen2VisionTower(VisionTower):
    """LayerNorm and quick GELU (`Qwen2VisionTransformerPretrainedModel`)."""

    @staticmethod
    def norm(config: VisionConfig, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Module:
        return layer_norm(config.width, NORM_EPSILON, numerics, rngs)

    @staticmethod
    def mlp(config: VisionConfig, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Module:
        return QuickGeluMlp(config.width, config.mlp_width, numerics, rngs,
                            out_scale=residual_scale(config.depth))


class Qwen2VL(VisionLanguageModel):
    """The whole model (`Qwen2VLForConditionalGeneration`)."""

    tower = Qwen2VisionTower
