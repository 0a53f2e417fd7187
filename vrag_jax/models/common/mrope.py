"""M-RoPE: 3-D position ids on the host, rotary angles on the device."""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from vrag_jax.models.common.config import ModelConfig, TextConfig


def text_positions(start: int, count: int) -> np.ndarray:
    """Positions of text tokens: equal on all three axes.

    Args:
      start: position of the first token.
      count: number of tokens; the next position is `start + count`.

    Returns:
      `[3, count]` int32.
    """
    return np.tile(np.arange(start, start + count, dtype=np.int32), (3, 1))


def image_positions(
    start: int, grid_thw: tuple[int, int, int], merge_size: int
) -> tuple[np.ndarray, int]:
    """Positions of an image's merged tokens in raster order.

    Args:
      start: position at which the image begins.
      grid_thw: `(t, h, w)`, the image's size in patches.
      merge_size: patches a side that one token covers.

    Returns:
      `[3, t * h * w / merge_size**2]` int32 (time, height, width) and the
      position of the token after the image, past the longer of its sides
      (`Qwen2_5_VLModel.get_rope_index`).
    """
    t, h, w = (int(v) for v in grid_thw)
    rows, columns = h // merge_size, w // merge_size
    positions = np.indices((t, rows, columns), dtype=np.int32).reshape(3, -1) + np.int32(start)
    return positions, start + max(rows, columns)


def rope_index(
    tokens: np.ndarray, image_grids: Iterable[tuple[int, int, int]], config: ModelConfig
) -> tuple[np.ndarray, int]:
    """Positions of a whole sequence of text and images.

    Args:
      tokens: `[T]` token ids; each image is a run of `image_token_id`, as long
        as the image has merged tokens.
      image_grids: `(t, h, w)` in patches of each image, in order.
      config: gives the image token and the merge size.

    Returns:
      `[3, T]` int32 position ids and the position of the next token.

    Raises:
      ValueError: if images and placeholder runs do not agree.
    """
    is_image = np.asarray(tokens) == config.image_token_id
    merge = config.vision.spatial_merge_size
    pieces, at, position = [], 0, 0
    for number, grid in enumerate(image_grids, start=1):
        text = int(np.argmax(is_image[at:])) if is_image[at:].any() else len(tokens) - at
        pieces.append(text_positions(position, text))
        at, position = at + text, position + text
        image, position = image_positions(position, grid, merge)
        run = is_image[at : at + image.shape[1]]
        if len(run) != image.shape[1] or not run.all():
            raise ValueError(f'image {number} needs {image.shape[1]} placeholders in a row, '
                             f'the tokens hold {int(run.sum())}')
        pieces.append(image)
        at += image.shape[1]
    if is_image[at:].any():
        raise ValueError(f'{int(is_image[at:].sum())} image placeholders are left over')
    pieces.append(text_positions(position, len(tokens) - at))
    return np.concatenate(pieces, axis=1), position + len(tokens) - at


def rotary_angles(position_ids: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the decoder's rotary angles.

    Each frequency follows one axis of the position: the first `mrope_section[0]`
    frequencies time, the next height, the last width.

    Args:
      position_ids: `[3, B, T]` int32.
      config: gives the sections, the base and the head dimension.

    Returns:
      Cosine and sine, each `[B, T, head_dim / 2]` float32.
    """
    text = config.text
    exponents = np.arange(0, text.head_dim, 2, dtype=np.float32) / text.head_dim
    axes = np.repeat(np.arange(3), text.mrope_section)
    positions = jnp.moveaxis(position_ids, 0, -1)[..., axes]
    if text.yarn is None:
        angles = positions.astype(jnp.float32) / jnp.float32(text.rope_theta) ** exponents
        return jnp.cos(angles), jnp.sin(angles)
    frequencies, scale = yarn_frequencies(text)
    angles = positions.astype(jnp.float32) * frequencies
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def yarn_frequencies(text: TextConfig) -> tuple[np.ndarray, float]:
    """Rotary frequencies of a decoder with YaRN.

    A frequency that turns more than `beta_fast` times within the positions trained on is
    kept, one that turns less than `beta_slow` times is divided by `factor`; between the two
    the share of the divided one rises linearly with the dimension.

    Args:
      text: of the decoder; has `yarn`.

    Returns:
      `[head_dim / 2]` float32 angles a position, and the factor of cosines and sines.
    """
    yarn, dim = text.yarn, text.head_dim
    assert yarn is not None

    def dimension(turns: float) -> float:
        """The dimension, of `head_dim / 2`, that turns so often."""
        length = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(text.rope_theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    # transformers' own guard against a ramp without length.
    ramp = (np.arange(dim // 2) - low) / (high - low if high != low else 0.001)
    divided = np.clip(ramp, 0, 1)
    frequencies = text.rope_theta ** -(np.arange(0, dim, 2) / dim)
    frequencies *= divided / yarn.factor + (1 - divided)
    scale = yarn.attention_factor or 0.1 * math.log(yarn.factor) + 1
    return frequencies.astype(np.float32), scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + head_dim / 2) of each head in float32.

    Args:
      x: `[..., heads, head_dim]`.
      cos: `[..., head_dim / 2]` float32.
      sin: `[..., head_dim / 2]` float32.

    Returns:
      Like `x`, in its dtype.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
