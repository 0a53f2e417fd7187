"""The sampler's jitted programs: prefill, decode, copy blocks of the cache."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.decoder import Caches, KVCache, init_cache, join_caches, split_cache
from vrag_jax.models.common.parameters import Params, merge
from vrag_jax.models.policy import PolicyModel
from vrag_jax.parallel.sharding import RULES, Rules, constrain, sharded_over
from vrag_jax.sampling.distribution import SamplingConfig, draw
from vrag_jax.sampling.drafts import propose
from vrag_jax.sampling.slots import KVPool, SamplerConfig

# Parameters that are multiplied or looked up, by the end of their path.
PRODUCTS = ('kernel', 'bias', 'embedding', 'lora_a', 'lora_b')

RUNNING, ACTION, ENDED, LENGTH = range(4)

Array = Any  # numpy on the host, jax under jit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefillInputs:
    """New tokens of `B` rows, of `D` shards one after the other.

    Attributes:
      table: `[D, B / D, N]` int32 blocks of what each row has cached; `N` may be 0.
      lengths: `[B]` int32 tokens cached.
      places: `[B, T]` int32 place in the row's part of the pool, past its end for
        padding.
      tokens: `[B, T]` int32.
      position_ids: `[3, B, T]` int32.
      image_index: `[B, T]` int32 row of the image features, -1 on text.
    """

    table: Array
    lengths: Array
    places: Array
    tokens: Array
    position_ids: Array
    image_index: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeInputs:
    """What `B` slots, of `D` shards one after the other, need in order to decode.

    Attributes:
      table, lengths: as in `PrefillInputs`.
      places: `[B, R]` int32 places in the pool for the next tokens.
      pending: `[B]` int32 last token of the sequence, which is not cached yet.
      positions: `[B]` int32 its M-RoPE position (equal on all axes).
      automaton: `[B]` int32 state of the automaton that finds the end of an action.
      budgets: `[B]` int32 most tokens to sample, 0 in an empty slot.
      seeds: `[B]` uint32 of the sequences.
      stop_after: scalar int32; the call returns when so many slots have stopped.
      history: `[B, max_length]` int32 the sequence's tokens, -1 past its end; None
        where nothing is guessed ahead.
    """

    table: Array
    lengths: Array
    places: Array
    pending: Array
    positions: Array
    automaton: Array
    budgets: Array
    seeds: Array
    stop_after: Array
    history: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a call has sampled.

    Attributes:
      tokens: `[B, R]` int32.
      logprobs: `[B, R]` float32.
      sampled: `[B, R]` bool, which of them are part of the sequence, in order.
      automaton: `[B]` int32 state after them.
      stops: `[B]` int32 `RUNNING` or why the turn is over.
      passes: scalar int32, forward passes of the call.
    """

    tokens: Array
    logprobs: Array
    sampled: Array
    automaton: Array
    stops: Array
    passes: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StopRules:
    """When a turn ends, on the device; see `actions.stopping.StopTable`.

    Attributes:
      transitions: `[S, V]` uint8.
      accepting: `[S]` bool.
      end_ids: `[E]` int32 tokens that end a turn by themselves.
      initial: state at the start of a turn.
    """

    transitions: Array
    accepting: Array
    end_ids: Array
    initial: int = dataclasses.field(metadata={'static': True})

    def after(self, automaton, tokens, counts, budgets) -> tuple[jax.Array, jax.Array]:
        """Returns the automaton after one more token each, and whether the turn is over."""
        automaton = self.transitions[automaton, tokens].astype(jnp.int32)
        ended = jnp.any(tokens[:, None] == self.end_ids, axis=1)
        stops = jnp.where(self.accepting[automaton], ACTION, jnp.where(
            ended, ENDED, jnp.where(counts >= budgets, LENGTH, RUNNING)))
        return automaton, stops


@dataclasses.dataclass(frozen=True)
class Programs:
    """Jitted functions; each compiles once for every set of input shapes.

    Attributes:
      prefill: `(params, pool, PrefillInputs, features) -> pool`.
      decode: `(params, pool, DecodeInputs, key, StopRules, sampling) -> (pool, Decoded)`.
      copy: `(pool, source [D, C], destination [D, C]) -> pool`, whole blocks.
    """

    prefill: Callable
    decode: Callable
    copy: Callable


def make_programs(
    graphdef: nnx.GraphDef[PolicyModel], model_config: ModelConfig, config: SamplerConfig,
    mesh: Mesh | None, pool_shardings: KVPool | None, sharding_rules: Rules = RULES,
) -> Programs:
    """Builds the programs of a sampler; the pool is donated to all of them.

    It comes back in the shardings in which it went in: others would compile the
    next call again.
    """
    dtype = jnp.dtype(config.cache_dtype)
    unrolled = model_config.text.num_hidden_layers <= config.unroll_depth

    def as_used(cache: KVCache) -> Caches:
        return split_cache(cache) if unrolled else cache

    def empty(rows: int, width: int) -> Caches:
        return as_used(init_cache(model_config, rows, width, dtype))

    def on_mesh(function):
        """The mesh that the model's own constraints are about, see `constrain`."""
        @functools.wraps(function)
        def run(*args):
            with sharded_over(mesh, sharding_rules):
                return function(*args)

        return run

    def prefill(params, pool: KVPool, new: PrefillInputs, features) -> KVPool:
        rows, width = new.tokens.shape
        past, past_seen = None, None
        if new.table.shape[-1]:
            cached = gather(pool, new.table)
            past, past_seen = as_used(cached), _cached(cached, new.lengths)
        causal = jnp.tril(jnp.ones((width, width), bool))
        _, chunk = merge(graphdef, params).extend(
            new.tokens, new.position_ids, empty(rows, width), 0,
            jnp.broadcast_to(causal, (rows, width, width)), past, past_seen,
            image_features=features, image_index=new.image_index)
        return scatter(pool, join_caches(chunk), new.places)

    def decode(params, pool: KVPool, slots: DecodeInputs, key, rules: StopRules,
               sampling: SamplingConfig) -> tuple[KVPool, Decoded]:
        # Cast, and taken apart, once a call and not at every pass.
        model = merge(graphdef, in_dtype_of_products(graphdef, params))
        weights = model.split_layers() if unrolled else None
        rows, width = slots.places.shape
        ahead = config.draft_tokens
        steps = config.decode_steps
        row_keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(slots.seeds)
        past = gather(pool, slots.table)
        past_seen = _cached(past, slots.lengths)
        layers = as_used(past)
        columns = jnp.arange(width)
        stops = jnp.where(slots.budgets > 0, RUNNING, LENGTH)
        in_use = stops == RUNNING
        carry = (
            jnp.zeros((), jnp.int32), empty(rows, width),
            slots.pending, slots.automaton, stops, jnp.zeros(rows, jnp.int32), slots.history,
            jnp.zeros((rows, width), jnp.int32), jnp.zeros((rows, width), jnp.float32),
            jnp.zeros((rows, width), bool))

        def go_on(carry):
            i, stops = carry[0], carry[4]
            stopped = jnp.sum((stops != RUNNING) & in_use)
            return (i < steps) & jnp.any(stops == RUNNING) & (stopped < slots.stop_after)

        def step(carry):
            i, recent, pending, automaton, stops, counts, history, out, logp, sampled = carry
            index = slots.lengths + counts  # Place of `pending` in the sequence.
            tokens = pending[:, None]
            if ahead:
                drafts = propose(history, index + 1, config.draft_ngram, ahead)
                tokens = jnp.concatenate([tokens, drafts], axis=1)
            offsets = jnp.arange(ahead + 1)
            first = i * (ahead + 1)
            positions = (slots.positions + counts)[:, None] + offsets
            # Of this call a token sees what has been sampled, and the pass's own
            # tokens up to itself.
            own = (columns >= first) & (columns - first <= offsets[:, None])
            hidden, recent = model.extend(
                jnp.maximum(tokens, 0), jnp.broadcast_to(positions, (3, *tokens.shape)), recent,
                first, sampled[:, None] | own, layers, past_seen,
                layers=weights)
            keys = jax.vmap(lambda k, n: jax.vmap(
                lambda offset: jax.random.fold_in(k, n + offset))(1 + offsets))(row_keys, index)
            drawn, logprobs = (x.reshape(tokens.shape) for x in draw(
                model.logits(hidden).reshape(rows * (ahead + 1), -1), keys.reshape(-1), sampling))
            # A token drawn after a draft counts if that draft is what was drawn before
            # it: the very tokens that drawing one by one would give.
            keep = stops == RUNNING
            kept = []
            for n in range(ahead + 1):
                if n:
                    keep = keep & (stops == RUNNING) & (drawn[:, n - 1] == tokens[:, n])
                counts = counts + keep
                after, over = rules.after(automaton, drawn[:, n], counts, slots.budgets)
                automaton = jnp.where(keep, after, automaton)
                stops = jnp.where(keep, over, stops)
                pending = jnp.where(keep, drawn[:, n], pending)
                kept.append(keep)
            keep_all = jnp.stack(kept, axis=1)
            if ahead:
                where = jnp.where(keep_all, index[:, None] + 1 + offsets, history.shape[1])
                history = history.at[jnp.arange(rows)[:, None], where].set(drawn, mode='drop')
            put = functools.partial(jax.lax.dynamic_update_slice, start_indices=(0, first))
            return (i + 1, recent, pending, automaton, stops, counts, history, put(out, drawn),
                    put(logp, logprobs), put(sampled, keep_all))

        passes, recent, _, automaton, stops, _, _, out, logp, sampled = jax.lax.while_loop(
            go_on, step, carry)
        # The keys and values of a pass's token are kept where the token that it drew is.
        order = jnp.cumsum(sampled, axis=1) - 1
        places = jnp.where(sampled, jnp.take_along_axis(
            jnp.asarray(slots.places), jnp.maximum(order, 0), axis=1), _pool_tokens(pool))
        return (scatter(pool, join_caches(recent), places),
                Decoded(out, logp, sampled, automaton, stops, passes))

    def copy(pool: KVPool, source, destination) -> KVPool:
        def one(part, source, destination):
            return part.at[destination].set(part[source], mode='drop')

        return jax.tree.map(lambda x: jax.vmap(one)(x, source, destination), pool)

    return Programs(
        prefill=jax.jit(on_mesh(prefill), donate_argnums=1, out_shardings=pool_shardings),
        decode=jax.jit(on_mesh(decode), donate_argnums=1, static_argnums=5,
                       out_shardings=(pool_shardings, None)),
        copy=jax.jit(copy, donate_argnums=0, out_shardings=pool_shardings),
    )


def in_dtype_of_products(graphdef: nnx.GraphDef[PolicyModel], params: Params) -> Params:
    """Returns the parameters of products and lookups in the dtype in which they are done."""
    dtype = merge(graphdef, params).numerics.dtype
    return {path: value.astype(dtype)
            if path.rpartition('/')[2] in PRODUCTS else value
            for path, value in params.items()}


def gather(pool: KVPool, table: jax.Array) -> KVCache:
    """Copies the blocks of each row out of the pool.

    A copy a call, not a token: it is read by all the call's passes, and compact
    whatever blocks the sequences own.

    Args:
      pool: the blocks.
      table: `[D, B / D, N]` int32 blocks of each row.

    Returns:
      A cache of `B` rows and `N * block_size` tokens.
    """
    def rows(part: jax.Array) -> jax.Array:
        """`[L, B, KVH, N * block_size, head_dim]`."""
        blocks = jax.vmap(lambda part, table: part[table])(part, table)
        shards, each, count, size, layers, heads, dim = blocks.shape
        tokens = blocks.reshape(shards * each, count * size, layers, heads, dim)
        return constrain(tokens.transpose(2, 0, 3, 1, 4), (None, 'batch', 'heads'))

    return KVCache(rows(pool.k).swapaxes(-1, -2), rows(pool.v))


def scatter(pool: KVPool, cache: KVCache, places: jax.Array) -> KVPool:
    """Writes tokens of a cache into the pool.

    Args:
      pool: the blocks.
      cache: of `B` rows and `T` tokens.
      places: `[B, T]` int32 place in the row's part; past its end drops the token.
    """
    def write(part: jax.Array, tokens: jax.Array) -> jax.Array:
        shards, blocks, size = part.shape[:3]
        flat = part.reshape(shards, blocks * size, *part.shape[3:])
        new = tokens.reshape(shards, -1, *tokens.shape[2:]).astype(part.dtype)
        flat = jax.vmap(lambda flat, place, new: flat.at[place].set(new, mode='drop'))(
            flat, places.reshape(shards, -1), new)
        return flat.reshape(part.shape)

    return KVPool(write(pool.k, cache.k.transpose(1, 4, 0, 2, 3)),
                  write(pool.v, cache.v.transpose(1, 3, 0, 2, 4)))


def _pool_tokens(pool: KVPool) -> int:
    return pool.k.shape[1] * pool.k.shape[2]


def _cached(past: KVCache, lengths: jax.Array) -> jax.Array:
    """Which tokens of the gathered blocks are a row's own, `[B, 1, S]`."""
    return (jnp.arange(past.k.shape[-1]) < lengths[:, None])[:, None]
