"""Drawing tokens from logits: temperature, top-k, top-p, greedy."""

import dataclasses

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # finite, so that differences of masked logits are not NaN


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest set of most likely tokens with so much mass.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f'temperature must not be negative, got {self.temperature}')
        if self.top_k < 0:
            raise ValueError(f'top_k must not be negative, got {self.top_k}')
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p must be in (0, 1], got {self.top_p}')


def truncate(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Masks the logits outside the top-k and the top-p set.

    Args:
      logits: `[..., V]` float32.
      top_k: 0 keeps all; ties with the k-th are kept.
      top_p: 1 keeps all; the most likely token is always kept.

    Returns:
      `[..., V]` float32, masked entries at a large negative number.
    """
    if top_k and top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, NEGATIVE, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
        threshold = jnp.take_along_axis(ordered, last, axis=-1)
        logits = jnp.where(logits < threshold, NEGATIVE, logits)
    return logits


def draw(logits: jax.Array, keys: jax.Array, config: SamplingConfig) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row.

    Args:
      logits: `[B, V]` float32.
      keys: `[B]` typed PRNG keys, one a row, so that a row's tokens do not
        depend on what else is in the batch.
      config: how to draw.

    Returns:
      `(tokens [B] int32, logprobs [B] float32)`. The log-probs are those of the
      policy at this temperature, before top-k and top-p (greedy: at
      temperature 1), because this is what the learner computes.
    """
    greedy = config.temperature == 0
    scaled = logits if greedy else logits / config.temperature
    log_p = jax.nn.log_softmax(scaled, axis=-1)
    if greedy:
        chosen = scaled
    else:
        # The largest of logits with Gumbel noise is a draw from their softmax.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, scaled.shape[-1:]))(keys)
        chosen = truncate(scaled, config.top_k, config.top_p) + noise
    # The first of the largest, as argmax gives: two plain reductions take a third of
    # the time of one that carries indices along on a CPU, and no more elsewhere.
    ids = jnp.arange(chosen.shape[-1], dtype=jnp.int32)
    largest = chosen == jnp.max(chosen, axis=-1, keepdims=True)
    tokens = jnp.min(jnp.where(largest, ids, jnp.int32(chosen.shape[-1] - 1)), axis=-1)
    return tokens, jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]
