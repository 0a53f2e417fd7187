"""A vision tower: attention over packed patches, in windows or whole images, and the merger."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vrag_jax.models.common.config import VisionConfig
from vrag_jax.models.common.layers import (
    MASKED,
    Numerics,
    linear,
    residual_scale,
    scan_layers,
    stack_layers,
)
from vrag_jax.models.common.mrope import rotate
from vrag_jax.models.common.patch_packing import PatchBatch
from vrag_jax.models.common.pixels import patch_values
from vrag_jax.parallel.sharding import constrain

NORM_EPSILON = 1e-6  # Of the norms of all families.
ROPE_THETA = 10000.0
PARALLEL_WINDOWS = 8  # Windows whose full attention is worked out at a time.


class VisionTower(nnx.Module):
    """Patches to merged features; a family gives the norms and the MLPs of its blocks."""

    @staticmethod
    def norm(config: VisionConfig, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Module:
        """Makes a norm, `[..., D] -> [..., D]`."""
        raise NotImplementedError

    @staticmethod
    def mlp(config: VisionConfig, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Module:
        """Makes the MLP of a block, `[..., D] -> [..., D]`."""
        raise NotImplementedError

    def __init__(self, config: VisionConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.config = config
        self.numerics = numerics
        self.patch_embed = linear(
            config.patch_dim, config.width, numerics, rngs, bias=False)
        self.blocks = stack_layers(
            lambda rngs: VisionBlock(self, config, numerics, rngs), config.depth, rngs)
        self.merger = PatchMerger(self, config, numerics, rngs)

    def __call__(self, batch: PatchBatch) -> jax.Array:
        """Encodes packed images.

        Args:
          batch: patches in windows.

        Returns:
          `[M, output_width]` merged features, images one after the other in
          raster order; zero on padding.
        """
        pixels = jnp.asarray(batch.pixels)
        if pixels.dtype == jnp.uint8:
            # Scaled in float32: half precision would round bytes, and then the rest.
            pixels = patch_values(
                pixels, self.config.pixels, self.config.temporal_patch_size, jnp)
        x = self.patch_embed(pixels.astype(self.numerics.dtype))
        x = constrain(x, ('windows',))
        angles = rotary_angles(jnp.asarray(batch.positions), self.config.head_dim)
        graphdef, stacked = nnx.split(self.blocks)
        is_full = np.isin(np.arange(self.config.depth), self.config.full_layers)

        def body(x, layer):
            params, full = layer
            x = nnx.merge(graphdef, params)(x, angles, batch, full)
            return constrain(x, ('windows',))

        x = scan_layers(body, x, (stacked, jnp.asarray(is_full)), self.numerics)
        merged = self.merger(x)
        order = jnp.asarray(batch.order)
        return jnp.where(order[:, None] >= 0, merged[jnp.maximum(order, 0)], 0)


class VisionBlock(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, tower: VisionTower, config: VisionConfig, numerics: Numerics,
                 rngs: nnx.Rngs):
        self.norm1 = tower.norm(config, numerics, rngs)
        self.attention = VisionAttention(config, numerics, rngs)
        self.norm2 = tower.norm(config, numerics, rngs)
        self.mlp = tower.mlp(config, numerics, rngs)

    def __call__(self, x, angles, batch: PatchBatch, full: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x), angles, batch, full)
        return x + self.mlp(self.norm2(x))


class VisionAttention(nnx.Module):
    """Attention inside windows, or inside whole images."""

    def __init__(self, config: VisionConfig, numerics: Numerics, rngs: nnx.Rngs):
        size = config.width
        self.heads = config.num_heads
        self.always_full = len(set(config.full_layers)) == config.depth
        self.qkv = linear(size, 3 * size, numerics, rngs, bias=True)
        self.proj = linear(size, size, numerics, rngs, bias=True,
                           init_scale=residual_scale(config.depth))

    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        batch: PatchBatch,
        full: jax.Array,
    ) -> jax.Array:
        """Mixes patches.

        Args:
          x: `[W, P, D]`.
          angles: cosine and sine, each `[W, P, head_dim / 2]`.
          batch: which patches belong together.
          full: scalar bool, whether a patch sees its whole image.

        Returns:
          `[W, P, D]`.
        """
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = (qkv[:, :, i] for i in range(3))
        q, k = rotate(q, *angles), rotate(k, *angles)
        image_ids = jnp.asarray(batch.image_ids)
        first = jnp.asarray(batch.first_window)
        if batch.span == 1:
            out = window_attention(q, k, v, image_ids)
        elif self.always_full:
            out = image_attention(q, k, v, image_ids, first, batch.span)
        else:
            out = jax.lax.cond(
                full,
                lambda q, k, v: image_attention(q, k, v, image_ids, first, batch.span),
                lambda q, k, v: window_attention(q, k, v, image_ids),
                q, k, v)
        return self.proj(out.reshape(x.shape))


class PatchMerger(nnx.Module):
    """Joins the patches under one token, `[W, P, D] -> [W * P / merge_area, out]`."""

    def __init__(self, tower: VisionTower, config: VisionConfig, numerics: Numerics,
                 rngs: nnx.Rngs):
        self.joined = config.width * config.merge_area
        self.ln_q = tower.norm(config, numerics, rngs)
        self.fc1 = linear(self.joined, self.joined, numerics, rngs, bias=True)
        self.fc2 = linear(self.joined, config.output_width, numerics, rngs, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.ln_q(x).reshape(-1, self.joined)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


def rotary_angles(positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine for patches: half of the frequencies follow the row, half the column.

    Args:
      positions: `[..., 2]` int32 row and column.
      head_dim: of the attention heads.

    Returns:
      Cosine and sine, each `[..., head_dim / 2]` float32.
    """
    exponents = np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2)
    angles = positions[..., None].astype(jnp.float32) / jnp.float32(ROPE_THETA) ** exponents
    angles = angles.reshape(*positions.shape[:-1], -1)
    return jnp.cos(angles), jnp.sin(angles)


def window_attention(q, k, v, image_ids: jax.Array) -> jax.Array:
    """Attention inside each window.

    Args:
      q, k, v: `[W, P, H, head_dim]`.
      image_ids: `[W, P]` int32, -1 on padding.

    Returns:
      `[W, P, H, head_dim]`.
    """
    return _attend(q, k, v, (image_ids >= 0)[:, None, None, :])


def image_attention(q, k, v, image_ids: jax.Array, first_window: jax.Array, span: int):
    """Attention inside each image, without an `[N, N]` array over all patches.

    Each window looks at the `span` windows that begin where its image does, and
    masks what is not its image. A few windows are done at a time; the scores are
    computed again in the backward pass.

    Args:
      q, k, v: `[W, P, H, head_dim]`.
      image_ids: `[W, P]` int32, -1 on padding.
      first_window: `[W]` int32, where the window's image begins.
      span: windows of the largest image, or more.

    Returns:
      `[W, P, H, head_dim]`.
    """
    windows, patches, heads, head_dim = q.shape
    # A window's image may lie on any device: all of them get it once, not in every round.
    k, v = constrain(k, (None,)), constrain(v, (None,))
    start = jnp.minimum(first_window, windows - span)

    def one(q, number, start):
        keys, values, ids = (
            jax.lax.dynamic_slice_in_dim(x, start, span).reshape(span * patches, *x.shape[2:])
            for x in (k, v, image_ids))
        # All patches of a window are of the image of its first one.
        return _attend(q, keys, values, (ids == number)[None, None, :])

    # Groups are strided over the windows, so that a sharded window axis stays
    # sharded: the loop runs over the other factor.
    parallel = math.gcd(windows, PARALLEL_WINDOWS)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(parallel, -1, *x.shape[1:]), 1, 0)

    numbers = jnp.max(image_ids, axis=1)
    out = jax.lax.map(
        jax.checkpoint(lambda args: jax.vmap(one)(*args), prevent_cse=False),
        (split(q), split(numbers), split(start)))
    return jnp.moveaxis(out, 0, 1).reshape(windows, patches, heads, head_dim)


def _attend(q, k, v, mask) -> jax.Array:
    """Softmax attention: q `[..., Q, H, d]`, k and v `[..., K, H, d]`, mask `[..., H, Q, K]`."""
    scores = jnp.einsum('...qhd,...khd->...hqk', q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum('...hqk,...khd->...qhd', weights, v)
