"""Sizes of Qwen2.5-VL: the fields of its vision tower, and the published models by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from vrag_jax.models.common import hf_fields
from vrag_jax.models.common.config import ModelConfig, TextConfig, VisionConfig

# What transformers' class takes for a field that a config leaves out.
_DEFAULTS: dict[str, Any] = {
    'depth': 32, 'hidden_size': 3584, 'intermediate_size': 3420, 'num_heads': 16,
    'out_hidden_size': 3584, 'in_channels': 3, 'patch_size': 14, 'temporal_patch_size': 2,
    'spatial_merge_size': 2, 'window_size': 112, 'fullatt_block_indexes': (7, 15, 23, 31),
    'tokens_per_second': 4}


@dataclasses.dataclass(frozen=True)
class Qwen25VisionConfig(VisionConfig):
    """Sizes of the vision tower: SwiGLU, RMSNorm, attention inside windows in most layers.

    `tokens_per_second` matters to videos only and is kept for round trips.
    """

    model_type: ClassVar[str] = 'qwen2_5_vl'
    hf_class: ClassVar[str] = 'Qwen2_5_VL'

    hidden_size: int = 1280
    intermediate_size: int = 3420
    out_hidden_size: int = 3584
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.window_size % (self.patch_size * self.spatial_merge_size):
            raise ValueError(f'vision.window_size {self.window_size} must be a multiple of '
                             'patch_size * spatial_merge_size')
        if not all(0 <= i < self.depth for i in self.fullatt_block_indexes):
            raise ValueError(f'vision.fullatt_block_indexes {self.fullatt_block_indexes} must '
                             f'be below vision.depth {self.depth}')

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size

    @property
    def output_width(self) -> int:
        return self.out_hidden_size

    @property
    def window_units(self) -> int:
        return self.window_size // self.patch_size // self.spatial_merge_size

    @property
    def full_layers(self) -> tuple[int, ...]:
        return self.fullatt_block_indexes

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        vision = hf_fields.filled(_DEFAULTS, fields, 'vision_config')
        hf_fields.refuse_activation('vision_config.hidden_act', vision, 'silu')
        # The class's own list goes beyond the layers of a small tower, which then has none.
        full = [i for i in vision['fullatt_block_indexes'] if i < vision['depth']]
        return hf_fields.build(cls, {**vision, 'fullatt_block_indexes': full})

    def to_hf(self) -> dict[str, Any]:
        vision = dataclasses.asdict(self)
        del vision['pixels']
        return {**vision, 'hidden_act': 'silu',
                'fullatt_block_indexes': list(self.fullatt_block_indexes)}


def _sizes(vision: Mapping[str, Any], **text: Any) -> ModelConfig:
    return ModelConfig(Qwen25VisionConfig(**vision), TextConfig(**text))


PRESETS: dict[str, ModelConfig] = {
    'qwen2_5_vl_3b': _sizes(
        dict(out_hidden_size=2048), vocab_size=151936, hidden_size=2048, intermediate_size=11008,
        num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
        tie_word_embeddings=True),
    'qwen2_5_vl_7b': _sizes(
        dict(out_hidden_size=3584), hidden_size=3584, intermediate_size=18944,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4),
    'qwen2_5_vl_32b': _sizes(
        dict(out_hidden_size=5120, intermediate_size=3456), hidden_size=5120,
        intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40,
        num_key_value_heads=8),
    'qwen2_5_vl_72b': _sizes(
        dict(out_hidden_size=8192, intermediate_size=3456), hidden_size=8192,
        intermediate_size=29568, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8),
    # With the usual base and sections the frequencies of an image's width turn by less
    # than 0.02 a column, and a small model that starts from random weights does not learn
    # to tell neighbouring columns apart. These give the width 0.2 a column, and keep low
    # frequencies for finding a token by what it is, however far away.
    'tiny': _sizes(
        dict(depth=2, hidden_size=128, intermediate_size=256, num_heads=4, out_hidden_size=128,
             fullatt_block_indexes=(1,)),
        vocab_size=0, hidden_size=128, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, rope_theta=1000.0,
        mrope_section=(2, 2, 12), tie_word_embeddings=True),
}
