"""The decoder: grouped-query attention, SwiGLU, scanned layers, KV cache."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vrag_jax.models.config import ModelConfig, TextConfig
from vrag_jax.models.layers import (
    INIT_STD,
    MASKED,
    Numerics,
    SwiGLU,
    linear,
    residual_scale,
    rms_norm,
    scan_layers,
    stack_layers,
)
from vrag_jax.models.mrope import rotary_angles, rotate
from vrag_jax.parallel.sharding import BATCH_AXES, constrain

QUERY_BLOCK = 1024  # Queries whose scores exist at a time, see `causal_attention`.

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values of all layers, each `[L, B, KVH, S, head_dim]`."""

    k: jax.Array
    v: jax.Array


def init_cache(config: ModelConfig, batch: int, max_len: int, dtype=jnp.float32) -> KVCache:
    """Returns an empty cache of `batch` rows that hold `max_len` tokens each."""
    text = config.text
    shape = (text.num_hidden_layers, batch, text.num_key_value_heads, max_len, text.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class Decoder(nnx.Module):
    """Token embeddings to final hidden states (`Qwen2_5_VLTextModel`)."""

    def __init__(self, config: ModelConfig, numerics: Numerics, rngs: nnx.Rngs):
        text = config.text
        self.config = config
        self.numerics = numerics
        self.embed_tokens = nnx.Embed(
            text.vocab_size, text.hidden_size, dtype=numerics.dtype,
            param_dtype=numerics.param_dtype,
            embedding_init=nnx.initializers.normal(INIT_STD), rngs=rngs)
        self.layers = stack_layers(
            lambda rngs: DecoderLayer(text, numerics, rngs), text.num_hidden_layers, rngs)
        self.norm = rms_norm(text.hidden_size, text.rms_norm_eps, numerics, rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Looks up `[B, T]` int32 tokens: `[B, T, D]` in the dtype of the computation."""
        table = self.embed_tokens.embedding[...].astype(self.numerics.dtype)
        # Rows of the batch and columns of the table lie on the same mesh axis. Left to
        # itself the compiler splits what is looked up by columns, and its gradient too,
        # and goes between that and rows by way of whole copies on every device.
        return constrain(constrain(table, ('tensor',))[tokens], (BATCH_AXES,))

    def __call__(
        self, x: jax.Array, position_ids: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        """Runs whole sequences.

        Args:
          x: `[B, T, D]` embeddings.
          position_ids: `[3, B, T]` int32.
          segment_ids: `[B, T]` int32, 0 on padding.

        Returns:
          `[B, T, D]` after the final norm.
        """
        angles = rotary_angles(position_ids, self.config)
        graphdef, stacked = nnx.split(self.layers)

        def attend(q, k, v):
            return causal_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), segment_ids)

        def body(x, params):
            return nnx.merge(graphdef, params)(x, angles, attend)

        return self.norm(scan_layers(body, x, stacked, self.numerics))

    def extend(
        self,
        x: jax.Array,
        position_ids: jax.Array,
        cache: KVCache,
        lengths: jax.Array,
        counts: jax.Array,
        attend_length: int | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Appends a ragged chunk to every row's cache and runs it.

        Args:
          x: `[B, T, D]` embeddings.
          position_ids: `[3, B, T]` int32.
          cache: keys and values so far; donate it, it is updated in place.
          lengths: `[B]` int32, tokens in each row's cache.
          counts: `[B]` int32, how many of the T new tokens are real.
          attend_length: slots that attention reads, when all rows are known to
            be shorter than the cache (static); None reads all of them.

        Returns:
          `[B, T, D]` after the final norm (meaningless past `counts`) and the
          new cache. What does not fit into the cache is dropped.
        """
        angles = rotary_angles(position_ids, self.config)
        graphdef, stacked = nnx.split(self.layers)
        rows, width, slots = x.shape[0], x.shape[1], cache.k.shape[3]
        steps = jnp.arange(width)
        # Padding goes to a slot past the end, where a scatter drops it.
        places = jnp.where(steps < counts[:, None], lengths[:, None] + steps, slots)
        seen = slots if attend_length is None else attend_length
        mask = jnp.arange(seen) <= (lengths[:, None] + steps)[..., None]
        row_index = jnp.arange(rows)[:, None]

        # The cache is carried, not scanned over: XLA then writes the new entries
        # in place, where scanned outputs would copy every layer's cache.
        def body(carry, layer):
            x, keys, values = carry
            params, number = layer

            def attend(q, k, v):
                nonlocal keys, values
                keys = keys.at[number, row_index, :, places].set(
                    k.astype(keys.dtype), mode='drop')
                values = values.at[number, row_index, :, places].set(
                    v.astype(values.dtype), mode='drop')
                past = (x[number, :, :, :seen].astype(q.dtype) for x in (keys, values))
                return grouped_attention(q, *past, mask)

            x = nnx.merge(graphdef, params)(x, angles, attend)
            return (x, keys, values), None

        layers = (stacked, jnp.arange(cache.k.shape[0]))
        (x, keys, values), _ = jax.lax.scan(body, (x, cache.k, cache.v), layers)
        return self.norm(x), KVCache(keys, values)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU; how attention sees the past is a parameter."""

    def __init__(self, config: TextConfig, numerics: Numerics, rngs: nnx.Rngs):
        size = config.hidden_size
        self.input_layernorm = rms_norm(size, config.rms_norm_eps, numerics, rngs)
        self.attention = Attention(config, numerics, rngs)
        self.post_attention_layernorm = rms_norm(size, config.rms_norm_eps, numerics, rngs)
        self.mlp = SwiGLU(size, config.intermediate_size, numerics, rngs, bias=False,
                          out_scale=residual_scale(config.num_hidden_layers))

    def __call__(
        self, x: jax.Array, angles: tuple[jax.Array, jax.Array], attend: Attend
    ) -> jax.Array:
        x = x + self.attention(self.input_layernorm(x), angles, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nnx.Module):
    """Projections of grouped-query attention; biases on q, k and v only."""

    def __init__(self, config: TextConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        size, kv_size = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = linear(size, size, numerics, rngs, bias=True)
        self.k_proj = linear(size, kv_size, numerics, rngs, bias=True)
        self.v_proj = linear(size, kv_size, numerics, rngs, bias=True)
        self.o_proj = linear(size, size, numerics, rngs, bias=False,
                             init_scale=residual_scale(config.num_hidden_layers))

    def __call__(
        self, x: jax.Array, angles: tuple[jax.Array, jax.Array], attend: Attend
    ) -> jax.Array:
        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], -1, self.head_dim)

        q, k = rotate(heads(self.q_proj(x)), *angles), rotate(heads(self.k_proj(x)), *angles)
        return self.o_proj(attend(q, k, heads(self.v_proj(x))).reshape(x.shape))


def causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """Grouped-query attention to earlier tokens of the same segment.

    Long sequences are done `QUERY_BLOCK` queries at a time, and a block's scores
    are computed again in the backward pass: a `[T, T]` array of them would not
    fit for the published models.

    Args:
      q: `[B, T, H, head_dim]`; heads of a group are consecutive.
      k: `[B, KVH, T, head_dim]`.
      v: `[B, KVH, T, head_dim]`.
      segment_ids: `[B, T]` int32, 0 on padding.

    Returns:
      `[B, T, H, head_dim]`.
    """
    length = q.shape[1]
    steps = jnp.arange(length)
    # Segments 1 1 2 0 see:   1 0 0 0
    #                         1 1 0 0
    #                         0 0 1 0
    #                         0 0 0 0
    def attend(q, own_segment, own_step):
        same = own_segment[:, :, None] == segment_ids[:, None, :]
        causal = own_step[:, None] >= steps
        return grouped_attention(q, k, v, same & causal & (segment_ids > 0)[:, None, :])

    if length <= QUERY_BLOCK:
        return attend(q, segment_ids, steps)

    def blocks(x, axis):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, -length % QUERY_BLOCK)
        shape = (*x.shape[:axis], -1, QUERY_BLOCK, *x.shape[axis + 1:])
        return jnp.moveaxis(jnp.pad(x, widths).reshape(shape), axis, 0)

    block = jax.checkpoint(lambda args: attend(*args), prevent_cse=False)
    out = jax.lax.map(block, (blocks(q, 1), blocks(segment_ids, 1), blocks(steps, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :length]


def grouped_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention with float32 softmax.

    Args:
      q: `[B, T, H, head_dim]`; heads of a group are consecutive.
      k: `[B, KVH, S, head_dim]`.
      v: `[B, KVH, S, head_dim]`.
      mask: `[B, T, S]` bool, whether a query sees a key.

    Returns:
      `[B, T, H, head_dim]`.
    """
    grouped = q.reshape(*q.shape[:2], k.shape[1], -1, q.shape[-1])
    if q.shape[1] == 1:
        return jax.lax.platform_dependent(
            grouped, k, v, mask, cpu=_attend_one_as_sums, default=_attend).reshape(q.shape)
    return _attend(grouped, k, v, mask).reshape(q.shape)


def _attend(q, k, v, mask) -> jax.Array:
    """q `[B, T, KVH, G, d]`, k and v `[B, KVH, S, d]`, mask `[B, T, S]`; returns q's shape."""
    batch, steps, kv_heads, group, size = q.shape
    # The queries of a group are the rows of one product with their head's keys:
    # plain batched products, three times as fast on a CPU as with five axes.
    rows = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, group * steps, size)
    scores = jnp.einsum('bkqd,bksd->bkqs', rows, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, group, steps, -1) * size**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
    weights = weights.astype(v.dtype).reshape(batch, kv_heads, group * steps, -1)
    out = jnp.einsum('bkqs,bksd->bkqd', weights, v)
    return out.reshape(batch, kv_heads, group, steps, size).transpose(0, 3, 1, 2, 4)


def _attend_one_as_sums(q, k, v, mask) -> jax.Array:
    """`_attend` for one query a row, as products and sums that fuse with reading the cache.

    On a CPU a product of a few rows with a long matrix is slower than this, and
    copies the layer's cache first.
    """
    scores = jnp.sum(q[:, 0, :, :, None] * k[:, :, None], axis=-1, dtype=jnp.float32)
    scores = jnp.where(mask[:, :, None], scores * q.shape[-1] ** -0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.sum(weights[..., None] * v[:, :, None], axis=3)[:, None]
