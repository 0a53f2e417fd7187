"""Where parameters lie in a HF checkpoint: names, shapes and order of its tensors."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vrag_jax.models.qwen2_5_vl.config import ModelConfig

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

_CHUNK_BYTES = 2**21  # Read at once: still in the processor's cache when it is transposed.
_BLOCK = 16  # Rows transposed at once.


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


def layers(
    path: str, shape: tuple[int, ...], name_of: Callable[[str], str] = tensor_name
) -> list[tuple[str, int | None]]:
    """Returns the tensors that make up a parameter: name and layer (None if not stacked)."""
    name = name_of(path)
    if '{}' not in name:
        return [(name, None)]
    return [(name.format(layer), layer) for layer in range(shape[0])]


def expected_shapes(
    shapes: Mapping[str, Any], config: ModelConfig | None,
    name_of: Callable[[str], str] = tensor_name,
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a checkpoint's tensors by their published names.

    Args:
      shapes: parameters or `ShapeDtypeStruct`s, by path.
      config: sizes; None of a model without a vision tower.
      name_of: path -> name of the tensor, `{}` for the layer.
    """
    expected = {}
    for path, leaf in shapes.items():
        for name, layer in layers(path, leaf.shape, name_of):
            own = leaf.shape if layer is None else leaf.shape[1:]
            expected[name] = _tensor_shape(path, own, config)
    return expected


def to_tensor(path: str, value: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Returns a tensor as a checkpoint holds it, its bytes in the order of its shape.

    Args:
      path: of the parameter.
      value: the parameter, or one layer of it.
      config: sizes.
    """
    shape = _tensor_shape(path, value.shape, config)
    if _is_kernel(path):
        transposed = np.empty(value.shape[::-1], value.dtype)
        _transpose(value, transposed)
        value = transposed
    return np.ascontiguousarray(value).reshape(shape)


def read_slice(path: str, tensor: Any, index: tuple[slice, ...], out: np.ndarray) -> None:
    """Reads a slice of a parameter, or of one layer of it, out of its tensor.

    Args:
      path: of the parameter.
      tensor: as the checkpoint holds it; reads what it is indexed with.
      index: of the slice in the parameter (without the layer axis); steps are 1.
      out: the slice is written here, in this array's dtype.
    """
    if path == 'visual/patch_embed/kernel':
        rows, columns = index
        whole = tensor[columns]
        _transpose(whole.reshape(len(whole), -1)[:, rows], out)
        return
    kernel = _is_kernel(path)
    index, stored = (index[::-1], out.T) if kernel else (index, out)
    start = index[0].start or 0
    step = max(1, _CHUNK_BYTES // max(1, stored[:1].nbytes))
    for at in range(0, len(stored), step):
        end = min(at + step, len(stored))
        chunk = tensor[(slice(start + at, start + end), *index[1:])]
        if kernel:
            _transpose(chunk, out[:, at:end])
        else:
            out[at:end] = chunk


def _is_kernel(path: str) -> bool:
    return path.endswith('/kernel')


def _tensor_shape(
    path: str, shape: tuple[int, ...], config: ModelConfig | None
) -> tuple[int, ...]:
    """Shape of a tensor, from that of its parameter (without the layer axis)."""
    if path == 'visual/patch_embed/kernel' and config is not None:
        vision = config.vision
        return (shape[1], vision.in_channels, vision.temporal_patch_size, vision.patch_size,
                vision.patch_size)
    return shape[::-1] if _is_kernel(path) else shape


def _transpose(matrix: np.ndarray, out: np.ndarray) -> None:
    """Writes the transposed matrix, in blocks that stay in the processor's cache.

    Several times as fast as numpy's own copy of a large transposed array; kernels are
    nearly all of a checkpoint.
    """
    for start in range(0, len(matrix), _BLOCK):
        out[:, start : start + _BLOCK] = matrix[start : start + _BLOCK].T
