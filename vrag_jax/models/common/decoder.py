"""The decoder: grouped-query attention, SwiGLU, scanned layers, KV cache."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vrag_jax.models.common.attention import causal_attention
from vrag_jax.models.common.cached_attention import cached_attention
from vrag_jax.models.common.config import ModelConfig, TextConfig
from vrag_jax.models.common.layers import (
    INIT_STD,
    Numerics,
    SwiGLU,
    give_dropout_keys,
    linear,
    residual_scale,
    rms_norm,
    scan_layers,
    stack_layers,
)
from vrag_jax.models.common.lookup import lookup
from vrag_jax.models.common.mrope import rotary_angles, rotate
from vrag_jax.parallel.sharding import constrain

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
    """Token embeddings to final hidden states (`Qwen2VLTextModel`, `Qwen2_5_VLTextModel`)."""

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
        # Rows of the batch and columns of the table lie on the same mesh axis. Left to
        # itself the compiler splits what is looked up by columns, and its gradient too,
        # and goes between that and rows by way of whole copies on every device.
        x = lookup(self.embed_tokens.embedding[...], tokens, self.numerics.dtype, ('vocab',))
        return constrain(x, ('batch', 'length'))

    def __call__(
        self, x: jax.Array, position_ids: jax.Array, segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Runs whole sequences.

        Args:
          x: `[B, T, D]` embeddings.
          position_ids: `[3, B, T]` int32.
          segment_ids: `[B, T]` int32, 0 on padding.
          dropout_key: random key of the adapters' dropout; None drops nothing.

        Returns:
          `[B, T, D]` after the final norm.
        """
        angles = rotary_angles(position_ids, self.config)
        graphdef, stacked = nnx.split(self.layers)

        def attend(q, k, v):
            return causal_attention(q, k, v, segment_ids, self.numerics.attention)

        def body(x, layer):
            params, key = layer
            module = nnx.merge(graphdef, params)
            if key is not None:
                give_dropout_keys(module, key)
            # What is kept for the backward pass is split over all devices.
            return constrain(module(x, angles, attend), ('batch', 'length'))

        keys = None if dropout_key is None else jax.random.split(
            dropout_key, self.config.text.num_hidden_layers)
        return self.norm(scan_layers(body, x, (stacked, keys), self.numerics))

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
