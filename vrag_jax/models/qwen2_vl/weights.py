"""Where parameters lie in checkpoints of Qwen2-VL, and of Qwen2.5-VL, and how they are split."""

import re

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.hf_layout import WeightLayout

VISION = '^visual/'  # Paths of the vision tower's parameters.
# Pieces of a parameter's path and of its tensors' names; `{}` is the layer.
_NAMES = (
    (r'^language_model/layers/attention/', 'model.layers.{}.self_attn.'),
    (r'^language_model/layers/', 'model.layers.{}.'),
    (r'^language_model/', 'model.'),
    (r'^visual/patch_embed/', 'visual.patch_embed.proj.'),
    (r'^visual/blocks/attention/', 'visual.blocks.{}.attn.'),
    (r'^visual/blocks/', 'visual.blocks.{}.'),
    (r'^visual/merger/fc1/', 'visual.merger.mlp.0.'),
    (r'^visual/merger/fc2/', 'visual.merger.mlp.2.'),
    (r'(kernel|scale|embedding)$', 'weight'),
    (r'/', '.'),
)
# What transformers 5 calls the same things.
_NEW_LAYOUT = (('model.language_model.', 'model.'), ('model.visual.', 'visual.'))


def tensor_name(path: str) -> str:
    """Returns the tensor's name in a published checkpoint, `{}` for the layer."""
    for pattern, replacement in _NAMES:
        path = re.sub(pattern, replacement, path)
    return path


def published_name(name: str) -> str:
    """Returns the published name of a tensor that may have that of transformers 5."""
    for new, old in _NEW_LAYOUT:
        if name.startswith(new):
            return old + name[len(new):]
    return name


def layout(config: ModelConfig) -> WeightLayout:
    """Returns the layout of a checkpoint with these sizes."""
    vision = config.vision
    return WeightLayout(tensor_name, published_name, {'visual/patch_embed/kernel': (
        vision.width, vision.in_channels, vision.temporal_patch_size, vision.patch_size,
        vision.patch_size)})
