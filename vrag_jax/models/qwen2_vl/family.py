"""Qwen2-VL as a family of policies."""

import dataclasses
from pathlib import Path
from typing import Any

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vrag_jax.models.common.axes import PARAMETER_AXES
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import PatchImages
from vrag_jax.models.common.pixels import PixelScale
from vrag_jax.models.policy import PolicyFamily
from vrag_jax.models.qwen2_vl.config import PRESETS, Qwen2VisionConfig
from vrag_jax.models.qwen2_vl.model import Qwen2VL
from vrag_jax.models.qwen2_vl.weights import VISION, layout

SPECIAL_TOKENS = {
    'image_token_id': '<|image_pad|>', 'video_token_id': '<|video_pad|>',
    'bos_token_id': '<|endoftext|>', 'eos_token_id': '<|im_end|>',
    'vision_start_token_id': '<|vision_start|>', 'vision_end_token_id': '<|vision_end|>'}


def load_processor(directory: Path) -> Qwen2VLImageProcessorPil:
    """Reads the image processor of a checkpoint.

    Raises:
      OSError: if there is none.
    """
    return Qwen2VLImageProcessorPil.from_pretrained(directory, local_files_only=True)


def new_processor(config: ModelConfig) -> Qwen2VLImageProcessorPil:
    """Returns the image processor of a policy that starts from random weights."""
    vision = config.vision
    # White paper becomes zero, ink the signal: such a policy begins to read much sooner.
    return Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        image_mean=[0.97] * 3, image_std=[0.25] * 3)


def with_processor(config: ModelConfig, processor: Any) -> ModelConfig:
    """Returns sizes whose vision tower scales pixels as an image processor does."""
    vision = dataclasses.replace(config.vision, pixels=PixelScale.of_processor(processor))
    return dataclasses.replace(config, vision=vision)


QWEN2_VL = PolicyFamily(
    model_type='qwen2_vl',
    model=Qwen2VL,
    from_hf=lambda config: ModelConfig.from_hf(config, Qwen2VisionConfig),
    presets=PRESETS,
    images=PatchImages,
    weights=layout,
    axes=PARAMETER_AXES,
    vision=VISION,
    special_tokens=SPECIAL_TOKENS,
    load_processor=load_processor,
    new_processor=new_processor,
    with_processor=with_processor,
    processor_class='Qwen2VLProcessor',
)
