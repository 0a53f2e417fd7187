"""Sizes of Qwen2-VL: the fields of its vision tower, and the published models by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from vrag_jax.models.common import hf_fields
from vrag_jax.models.common.config import ModelConfig, TextConfig, VisionConfig

# What transformers' class takes for a field that a config leaves out.
_DEFAULTS: dict[str, Any] = {
    'depth': 32, 'embed_dim': 1280, 'hidden_size': 3584, 'mlp_ratio': 4, 'num_heads': 16,
    'in_channels': 3, 'patch_size': 14, 'temporal_patch_size': 2, 'spatial_merge_size': 2}
_ACTIVATION = 'quick_gelu'


@dataclasses.dataclass(frozen=True)
class Qwen2VisionConfig(VisionConfig):
    """Sizes of the vision tower: LayerNorm, quick GELU, full attention in every layer.

    Attributes:
      embed_dim: size of a patch's hidden state.
      hidden_size: of a merged feature, which is the decoder's.
      mlp_ratio: hidden size of a block's MLP, in `embed_dim`.
    """

    model_type: ClassVar[str] = 'qwen2_vl'
    hf_class: ClassVar[str] = 'Qwen2VL'

    embed_dim: int = 1280
    hidden_size: int = 3584
    mlp_ratio: int = 4

    @property
    def width(self) -> int:
        return self.embed_dim

    @property
    def mlp_width(self) -> int:
        return self.embed_dim * self.mlp_ratio

    @property
    def output_width(self) -> int:
        return self.hidden_size

    @property
    def window_units(self) -> int:
        """Attention knows no windows here: they are only how patches lie in memory."""
        return 4

    @property
    def full_layers(self) -> tuple[int, ...]:
        return tuple(range(self.depth))

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        vision = hf_fields.filled(_DEFAULTS, fields, 'vision_config')
        hf_fields.refuse_activation('vision_config.hidden_act', vision, _ACTIVATION)
        return hf_fields.build(cls, vision)

    def to_hf(self) -> dict[str, Any]:
        vision = dataclasses.asdict(self)
        del vision['pixels']
        return {**vision, 'hidden_act': _ACTIVATION}


def _sizes(vision: Mapping[str, Any], **text: Any) -> ModelConfig:
    return ModelConfig(Qwen2VisionConfig(**vision), TextConfig(**text))


PRESETS: dict[str, ModelConfig] = {
    'qwen2_vl_2b': _sizes(
        dict(hidden_size=1536), vocab_size=151936, hidden_size=1536, intermediate_size=8960,
        num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        max_position_embeddings=32768, tie_word_embeddings=True),
    'qwen2_vl_7b': _sizes(
        dict(hidden_size=3584), hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=32768),
    # The decoder of `tiny`, see there.
    'tiny_qwen2_vl': _sizes(
        dict(depth=2, embed_dim=128, hidden_size=128, mlp_ratio=2, num_heads=4),
        vocab_size=0, hidden_size=128, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, rope_theta=1000.0,
        mrope_section=(2, 2, 12), tie_word_embeddings=True),
}
