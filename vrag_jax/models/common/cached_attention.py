"""Attention of new tokens to keys and values that are kept in caches."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vrag_jax.models.common.layers import MASKED

# Keys `[B, KVH, head_dim, S]`, values `[B, KVH, S, head_dim]`, seen `[B, T or 1, S]` bool.
CachedPart = tuple[jax.Array, jax.Array, jax.Array]


def cached_attention(q: jax.Array, parts: Sequence[CachedPart]) -> jax.Array:
    """Grouped-query attention to keys that lie in several caches, with float32 softmax.

    Args:
      q: `[B, T, H, head_dim]`; heads of a group are consecutive.
      parts: keys, values and which of them a query sees, of each cache.

    Returns:
      `[B, T, H, head_dim]`.
    """
    kv_heads = parts[0][0].shape[1]
    grouped = q.reshape(*q.shape[:2], kv_heads, -1, q.shape[-1])
    parts = [(k.astype(q.dtype), v.astype(q.dtype), seen) for k, v, seen in parts]
    if q.shape[1] == 1:
        out = jax.lax.platform_dependent(
            grouped, parts, cpu=_attend_parts_as_sums, default=_attend_parts)
    else:
        out = _attend_parts(grouped, parts)
    return out.reshape(q.shape)


def _attend_parts(q: jax.Array, parts: Sequence[CachedPart]) -> jax.Array:
    """q `[B, T, KVH, G, d]`; returns its shape."""
    batch, steps, kv_heads, group, size = q.shape
    rows = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, group * steps, size)
    scores = [jnp.einsum('bkqd,bkds->bkqs', rows, k, preferred_element_type=jnp.float32)
              .reshape(batch, kv_heads, group, steps, -1) for k, _, _ in parts]
    weights = [w.reshape(batch, kv_heads, group * steps, -1)
               for w in _joint_softmax(scores, parts, size)]
    out = _sum_of([jnp.einsum('bkqs,bksd->bkqd', w, v)
                   for w, (_, v, _) in zip(weights, parts, strict=True)])
    return out.reshape(batch, kv_heads, group, steps, size).transpose(0, 3, 1, 2, 4)


def _attend_parts_as_sums(q: jax.Array, parts: Sequence[CachedPart]) -> jax.Array:
    """`_attend_parts` for one query a row, as products and sums that fuse with reading.

    On a CPU a product of a few rows with a long matrix is slower than this, and
    copies the layer's cache first.
    """
    scores = [jnp.sum(q[:, 0, ..., None] * k[:, :, None], axis=-2, dtype=jnp.float32)
              [:, :, :, None] for k, _, _ in parts]
    weights = _joint_softmax(scores, parts, q.shape[-1])
    out = _sum_of([jnp.sum(w[:, :, :, 0, :, None] * v[:, :, None], axis=3)
                   for w, (_, v, _) in zip(weights, parts, strict=True)])
    return out[:, None]


def _sum_of(terms: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def _joint_softmax(
    scores: Sequence[jax.Array], parts: Sequence[CachedPart], size: int
) -> list[jax.Array]:
    """Softmax over the keys of all parts; scores and weights `[B, KVH, G, T, S]`."""
    masked = [jnp.where(seen[:, None, None], s * size**-0.5, MASKED)
              for s, (_, _, seen) in zip(scores, parts, strict=True)]
    weights = jax.nn.softmax(jnp.concatenate(masked, axis=-1), axis=-1)
    ends = np.cumsum([s.shape[-1] for s in scores])[:-1]
    return [w.astype(v.dtype)
            for w, (_, v, _) in zip(jnp.split(weights, ends, axis=-1), parts, strict=True)]
