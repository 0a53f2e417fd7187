"""A family of policies from outside the package: Qwen2.5-VL with larger patches and more features.

Its features have two parts, as those of a tower have that also feeds deeper layers of the decoder.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import PatchImages
from vrag_jax.models.common.lookup import lookup
from vrag_jax.models.qwen2_5_vl.config import Qwen25VisionConfig
from vrag_jax.models.qwen2_5_vl.family import QWEN2_5_VL
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL


@dataclasses.dataclass(frozen=True)
class LargePatches(Qwen25VisionConfig):
    """Sizes of its vision tower."""

    model_type: ClassVar[str] = 'two_part_vl'
    patch_size: int = 16
    window_size: int = 128


class TwoParts(Qwen2_5_VL):
    """The model: the second part of an image's features is added to the first."""

    def encode_images(self, batch):
        features = super().encode_images(batch)
        return {'first': features, 'deep': jnp.tanh(features)}

    def embed(self, tokens, image_features, image_index):
        if image_features is None:
            return super().embed(tokens, None, None)
        x = super().embed(tokens, image_features['first'], image_index)
        deep = lookup(image_features['deep'], jnp.maximum(image_index, 0), x.dtype)
        return x + jnp.where((image_index >= 0)[..., None], deep, 0)


class TwoPartImages(PatchImages):
    """How it takes images."""

    def features(self, rows, dtype):
        part = super().features(rows, dtype)
        return {'first': part, 'deep': part}


_TINY = QWEN2_5_VL.presets['tiny']
TWO_PART_VL = dataclasses.replace(
    QWEN2_5_VL, model_type='two_part_vl', model=TwoParts, images=TwoPartImages,
    from_hf=lambda config: ModelConfig.from_hf(config, LargePatches),
    presets={'tiny_two_part': dataclasses.replace(_TINY, vision=LargePatches(
        depth=2, hidden_size=128, intermediate_size=256, num_heads=4, out_hidden_size=128,
        fullatt_block_indexes=(1,)))})
