"""What a sampler keeps on the device: a KV cache of a fixed number of slots."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vrag_jax.models.config import ModelConfig
from vrag_jax.models.qwen2_5_vl import KVCache, init_cache
from vrag_jax.parallel.sharding import SLOT_RULES, tree_shardings


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Sizes of the sampler.

    Attributes:
      slots: rows of the cache: episodes that are sampled at the same time.
      max_length: tokens a slot holds, prompt, observations and samples.
      max_new_tokens: most tokens sampled in one turn.
      prefill_lengths: lengths to which chunks of new tokens are padded; one
        compilation each. Longer chunks are fed in several pieces.
      attend_lengths: cache lengths that attention reads, chosen by the longest
        row; one compilation each. `max_length` is always one of them.
      cache_dtype: dtype of the cache, e.g. 'bfloat16'.
    """

    slots: int = 128
    max_length: int = 1024
    max_new_tokens: int = 256
    prefill_lengths: tuple[int, ...] = (64, 256, 1024)
    attend_lengths: tuple[int, ...] = ()
    cache_dtype: str = 'float32'

    def __post_init__(self):
        for name in ('slots', 'max_length', 'max_new_tokens'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if not self.prefill_lengths or list(self.prefill_lengths) != sorted(self.prefill_lengths):
            raise ValueError(f'prefill_lengths must be increasing, got {self.prefill_lengths}')
        if any(not 0 < n <= self.max_length for n in self.attend_lengths):
            raise ValueError(
                f'attend_lengths {self.attend_lengths} must lie within '
                f'max_length = {self.max_length}'
            )
        if self.max_new_tokens > self.max_length:
            raise ValueError(
                f'max_new_tokens = {self.max_new_tokens} exceeds max_length = {self.max_length}'
            )

    def attend_length(self, needed: int) -> int:
        """Returns the smallest allowed length that holds `needed` tokens."""
        fitting = [n for n in self.attend_lengths if n >= needed]
        return min(fitting, default=self.max_length)

    def prefill_shapes(self) -> list[tuple[int, int]]:
        """Returns every pair of prefill length and attend length that can occur."""
        attends = sorted({*self.attend_lengths, self.max_length})
        shortest = (1, *(n + 1 for n in self.prefill_lengths))
        return [(width, attend) for least, width in zip(
                    shortest, self.prefill_lengths, strict=False)
                for attend in attends if attend >= min(least, self.max_length)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotState:
    """Device state: the cache, `lengths` `[B]` int32, next-token `logits` `[B, V]`."""

    cache: KVCache
    lengths: jax.Array
    logits: jax.Array


def init_slots(model_config: ModelConfig, config: SamplerConfig) -> SlotState:
    """Returns empty slots."""
    return SlotState(
        cache=init_cache(
            model_config, config.slots, config.max_length, jnp.dtype(config.cache_dtype)
        ),
        lengths=jnp.zeros(config.slots, jnp.int32),
        logits=jnp.zeros((config.slots, model_config.text.vocab_size), jnp.float32),
    )


def abstract_slots(model_config: ModelConfig, config: SamplerConfig, mesh: Mesh) -> SlotState:
    """Returns shapes and shardings of the slots: spread over data axes and key heads."""
    shapes = jax.eval_shape(functools.partial(init_slots, model_config, config))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes, tree_shardings(shapes, mesh, SLOT_RULES))
