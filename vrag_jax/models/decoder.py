"""The decoder: grouped-query attention, SwiGLU, scanned layers, KV cache."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
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

# Of `causal_attention`. A block is never smaller than what fills a matrix unit.
BLOCKS = 8
SMALLEST_BLOCK = 128
RECOMPUTED_LENGTH = 1024  # Longer sequences keep no scores for the backward pass.

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Rotated keys and values of all layers for `S` tokens of each row.

    Attributes:
      k: `[L, B, KVH, head_dim, S]`; the tokens last, so that a query's scores are
        sums over rows that lie in memory one after the other.
      v: `[L, B, KVH, S, head_dim]`.
    """

    k: jax.Array
    v: jax.Array


# The cache of all layers, or one for each layer (their arrays without the layer axis).
Caches = KVCache | list[KVCache]


def init_cache(config: ModelConfig, batch: int, length: int, dtype=jnp.float32) -> KVCache:
    """Returns an empty cache of `batch` rows that hold `length` tokens each."""
    text = config.text
    rows = (text.num_hidden_layers, batch, text.num_key_value_heads)
    return KVCache(jnp.zeros((*rows, text.head_dim, length), dtype),
                   jnp.zeros((*rows, length, text.head_dim), dtype))


def split_cache(cache: KVCache) -> list[KVCache]:
    """Returns a cache for each layer, `[B, ...]`."""
    return [KVCache(cache.k[n], cache.v[n]) for n in range(cache.k.shape[0])]


def join_caches(caches: Caches) -> KVCache:
    """The inverse of `split_cache`."""
    if isinstance(caches, KVCache):
        return caches
    return jax.tree.map(lambda *layers: jnp.stack(layers), *caches)


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

    def split_layers(self) -> list:
        """Returns the parameters of each layer."""
        stacked = nnx.split(self.layers)[1]
        return [jax.tree.map(lambda x, n=n: x[n], stacked)
                for n in range(self.config.text.num_hidden_layers)]

    def extend(
        self,
        x: jax.Array,
        position_ids: jax.Array,
        recent: Caches,
        place: jax.Array | int,
        recent_seen: jax.Array,
        past: Caches | None = None,
        past_seen: jax.Array | None = None,
        layers: list | None = None,
    ) -> tuple[jax.Array, Caches]:
        """Runs new tokens of each row against those whose keys and values are kept.

        Keys and values lie in two caches: `past` is only read, so that a loop over
        many calls need not carry it; the new tokens' go into `recent`.

        Given as one cache of all layers, the layers are scanned over: compile time does
        not grow with depth, but a loop around it copies each layer's part of weights and
        cache out of the whole before using it. Given by layer, they are unrolled, and
        with `layers` worked out before the loop nothing is copied in it.

        Args:
          x: `[B, T, D]` embeddings.
          position_ids: `[3, B, T]` int32.
          recent: of `R` tokens; donate it under jit, it is updated in place.
          place: scalar int32; the new tokens go to places `place` to `place + T` of
            `recent`.
          recent_seen: `[B, T, R]` bool, what a new token sees of `recent`.
          past: of `S` tokens, in the same form as `recent`, or None.
          past_seen: `[B, T or 1, S]` bool, what it sees of `past`.
          layers: of `split_layers`, where caches are given by layer.

        Returns:
          `[B, T, D]` after the final norm, and the new `recent`.
        """
        angles = rotary_angles(position_ids, self.config)
        graphdef, stacked = nnx.split(self.layers)

        def run(params, x, recent, number, old):
            """One layer; `recent` is that of all layers if `number` is not None."""
            at = () if number is None else (number,)

            def attend(q, k, v):
                nonlocal recent
                new = (k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3))
                starts = ((*at, 0, 0, 0, place), (*at, 0, 0, place, 0))
                recent = KVCache(*(
                    jax.lax.dynamic_update_slice(
                        cache, (x if number is None else x[None]).astype(cache.dtype), start)
                    for cache, x, start in zip((recent.k, recent.v), new, starts, strict=True)))
                own = recent if number is None else jax.tree.map(lambda x: x[number], recent)
                parts = [(own.k, own.v, recent_seen)]
                if old is not None:
                    parts.insert(0, (old.k, old.v, past_seen))
                return cached_attention(q, parts)

            return nnx.merge(graphdef, params)(x, angles, attend), recent

        if isinstance(recent, list):
            written = []
            for number, (params, cache) in enumerate(
                    zip(layers or self.split_layers(), recent, strict=True)):
                old = past[number] if isinstance(past, list) else None
                x, cache = run(params, x, cache, None, old)
                written.append(cache)
            return self.norm(x), written

        # `recent` is carried, not scanned over: XLA then writes the new entries in
        # place, where scanned outputs would copy every layer's cache.
        def body(carry, layer):
            params, number, old = layer
            return run(params, *carry, number, old), None

        scanned = (stacked, jnp.arange(recent.k.shape[0]), past)
        (x, recent), _ = jax.lax.scan(body, (x, recent), scanned)
        return self.norm(x), recent


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

    Queries are done in up to `BLOCKS` blocks, each of which looks at the keys up to its
    own end and no further: of eight blocks that is little more than half of all scores.
    Blocks of a long sequence have their scores computed again in the backward pass: a
    `[T, T]` array of them would not fit for the published models.

    Args:
      q: `[B, T, H, head_dim]`; heads of a group are consecutive.
      k: `[B, KVH, T, head_dim]`.
      v: `[B, KVH, T, head_dim]`.
      segment_ids: `[B, T]` int32, 0 on padding.

    Returns:
      `[B, T, H, head_dim]`.
    """
    length = q.shape[1]

    # Segments 1 1 2 0 see:   1 0 0 0
    #                         1 1 0 0
    #                         0 0 1 0
    #                         0 0 0 0
    def attend(start: int, q, k, v, own_segment, segments):
        seen = segments.shape[1]
        steps = jnp.arange(seen)
        same = own_segment[:, :, None] == segments[:, None, :]
        causal = (start + jnp.arange(q.shape[1]))[:, None] >= steps
        return grouped_attention(q, k, v, same & causal & (segments > 0)[:, None, :])

    size = block_size(length)
    out = []
    for start in range(0, length, size):
        end = min(start + size, length)
        block: Callable[..., jax.Array] = functools.partial(attend, start)
        if length > RECOMPUTED_LENGTH:
            block = jax.checkpoint(block)
        out.append(block(q[:, start:end], k[:, :, :end], v[:, :, :end],
                         segment_ids[:, start:end], segment_ids[:, :end]))
    return jnp.concatenate(out, axis=1)


def block_size(length: int) -> int:
    """Returns the queries of a block: a multiple of `SMALLEST_BLOCK`, at most `BLOCKS` of them."""
    return math.ceil(length / (BLOCKS * SMALLEST_BLOCK)) * SMALLEST_BLOCK


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
