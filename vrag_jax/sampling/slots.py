"""Sizes of a sampler and what it keeps on the device: a pool of key-value blocks."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.parallel.sharding import POOL_AXES, RULES, Rules, devices_along, tree_shardings

Shape = tuple[int, int]
STOPS = ('action', 'end_of_turn')


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Sizes of the sampler.

    Attributes:
      slots: sequences that are decoded at the same time, over all devices.
      fewer_slots: smaller numbers of slots, for when few sequences are left; one
        compilation each.
      max_length: tokens a sequence holds, prompt, observations and samples.
      max_new_tokens: most tokens sampled in one turn.
      decode_tokens: most tokens that a slot samples in one call to the device.
      refill: share of the slots in use whose turns must end for a call to return
        early, so that others move in.
      prefill_shapes: rows and tokens of the programs that prefill; one
        compilation each. Longer chunks are fed in several pieces.
      attend_lengths: numbers of cached tokens that attention reads, chosen by the
        longest sequence of a call; one compilation each. `max_length` is always one.
      block_size: tokens a block of the cache.
      cache_tokens: tokens that the cache holds, over all devices; 0 is
        `slots * max_length`. When it is full, sequences wait.
      cache_dtype: dtype of the cache, e.g. 'bfloat16'.
      draft_tokens: tokens guessed ahead from what the sequence holds already and
        verified in one pass (prompt lookup); 0 samples one by one.
      stop_at: where a turn ends that goes on after its action: at the tag that closes the
        'action', or at the 'end_of_turn', which the policy then samples itself. What it
        writes between the two is in the context; the action stays the first one.
      draft_ngram: tokens that must have occurred before for a guess.
      unroll_depth: policies with at most so many layers have them unrolled, see
        `Decoder.extend`: faster passes, longer compilation.
    """

    slots: int = 64
    fewer_slots: tuple[int, ...] = ()
    max_length: int = 1024
    max_new_tokens: int = 256
    decode_tokens: int = 64
    refill: float = 0.25
    prefill_shapes: tuple[Shape, ...] = ((16, 64), (4, 256))
    attend_lengths: tuple[int, ...] = ()
    block_size: int = 16
    cache_tokens: int = 0
    cache_dtype: str = 'float32'
    draft_tokens: int = 0
    draft_ngram: int = 2
    stop_at: str = 'action'
    unroll_depth: int = 4

    def __post_init__(self):
        for name in ('slots', 'max_length', 'max_new_tokens', 'decode_tokens', 'block_size',
                     'draft_ngram'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if not self.prefill_shapes or min(min(shape) for shape in self.prefill_shapes) < 1:
            raise ValueError(
                f'prefill_shapes must be pairs of positive numbers, got {self.prefill_shapes}')
        if any(not 0 < n <= self.max_length for n in self.attend_lengths):
            raise ValueError(f'attend_lengths {self.attend_lengths} must lie within '
                             f'max_length = {self.max_length}')
        if any(not 0 < n < self.slots for n in self.fewer_slots):
            raise ValueError(f'fewer_slots {self.fewer_slots} must lie between 0 and '
                             f'slots = {self.slots}')
        if self.stop_at not in STOPS:
            raise ValueError(f'stop_at must be one of {STOPS}, got {self.stop_at!r}')
        if self.max_new_tokens > self.max_length:
            raise ValueError(
                f'max_new_tokens = {self.max_new_tokens} exceeds max_length = {self.max_length}')
        if not 0 < self.refill <= 1:
            raise ValueError(f'refill must be in (0, 1], got {self.refill}')
        if not 0 <= self.draft_tokens < self.decode_tokens:
            raise ValueError(f'draft_tokens = {self.draft_tokens} must not be negative and be less '
                             f'than decode_tokens = {self.decode_tokens}')
        if self.cache_tokens and self.cache_tokens < self.most_tokens:
            raise ValueError(f'cache_tokens = {self.cache_tokens} holds not even one sequence of '
                             f'max_length, which takes {self.most_tokens} with whole blocks')

    def of_process(self, count: int) -> 'SamplerConfig':
        """Returns the sizes of the sampler of one of `count` processes.

        Raises:
          ValueError: if the slots cannot be dealt out.
        """
        if count == 1:
            return self
        if self.slots % count:
            raise ValueError(f'slots = {self.slots} cannot be dealt out to {count} processes')
        own = self.slots // count
        return dataclasses.replace(
            self, slots=own, cache_tokens=self.cache_tokens // count,
            fewer_slots=tuple(n for n in self.fewer_slots if n < own))

    @property
    def most_tokens(self) -> int:
        """Tokens of the blocks of a sequence of `max_length`."""
        return math.ceil(self.max_length / self.block_size) * self.block_size

    @property
    def decode_steps(self) -> int:
        """Passes of a call, each of which takes a token and its drafts."""
        return self.decode_tokens // (self.draft_tokens + 1)

    @property
    def recent_tokens(self) -> int:
        """Tokens, accepted or not, that a call runs in each slot."""
        return self.decode_steps * (self.draft_tokens + 1)

    def attend_blocks(self, tokens: int) -> int:
        """Returns how many blocks attention reads where `tokens` are cached at most."""
        if not tokens:
            return 0
        fitting = [n for n in self.attend_lengths if n >= tokens]
        return math.ceil(min(fitting, default=self.max_length) / self.block_size)

    def all_attend_blocks(self) -> list[int]:
        """Returns every value of `attend_blocks` but 0."""
        return sorted({self.attend_blocks(n) for n in (*self.attend_lengths, self.max_length)})

    def pool_blocks(self, shards: int) -> int:
        """Returns the blocks of each of `shards` equal parts of the cache.

        Raises:
          ValueError: if a part does not hold one sequence of `max_length`.
        """
        tokens = self.cache_tokens or self.slots * self.max_length
        blocks = math.ceil(tokens / (shards * self.block_size))
        if blocks * self.block_size < self.most_tokens:
            if self.cache_tokens:
                raise ValueError(
                    f'cache_tokens = {tokens} over {shards} devices is less than the '
                    f'{self.most_tokens} tokens of one sequence on each')
            blocks = self.most_tokens // self.block_size
        return blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVPool:
    """Keys and values in blocks, each `[D, P, block_size, L, KVH, head_dim]`.

    A token is one piece of memory. `D` parts, one for each group of devices that
    shares a part of the batch: no device reads another's.
    """

    k: jax.Array
    v: jax.Array


def batch_shards(mesh: Mesh | None, rules: Rules = RULES) -> int:
    """Returns over how many devices of a mesh slots are spread."""
    return devices_along('batch', mesh, rules)


def init_pool(model_config: ModelConfig, config: SamplerConfig, shards: int) -> KVPool:
    """Returns an empty pool in `shards` parts."""
    text = model_config.text
    shape = (shards, config.pool_blocks(shards), config.block_size, text.num_hidden_layers,
             text.num_key_value_heads, text.head_dim)
    dtype = jnp.dtype(config.cache_dtype)
    return KVPool(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def abstract_pool(
    model_config: ModelConfig, config: SamplerConfig, mesh: Mesh, rules: Rules = RULES
) -> KVPool:
    """Returns shapes and shardings of the pool: its parts over `batch`, its heads over `heads`."""
    init = functools.partial(init_pool, model_config, config, batch_shards(mesh, rules))
    shapes = jax.eval_shape(init)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes, tree_shardings(shapes, mesh, rules, POOL_AXES))
