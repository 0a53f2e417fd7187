"""Draft tokens by prompt lookup: what followed the same tokens before."""

import jax
import jax.numpy as jnp


def propose(history: jax.Array, lengths: jax.Array, ngram: int, count: int) -> jax.Array:
    """Finds the last earlier place where a row's last tokens occurred.

    Queries and answers repeat what stands in the prompt and in earlier turns (prompt
    lookup decoding; a form of speculative decoding, arXiv 2211.17192, whose draft
    model is the text itself).

    Args:
      history: `[B, S]` int32 tokens of each row.
      lengths: `[B]` int32 tokens that a row has.
      ngram: how many last tokens must have occurred.
      count: tokens to guess.

    Returns:
      `[B, count]` int32 the tokens that followed there; -1 where there is no such
      place, or nothing followed.
    """
    width = history.shape[1]
    starts = jnp.arange(width)
    last = lengths[:, None] - ngram + jnp.arange(ngram)
    wanted = jnp.take_along_axis(history, jnp.maximum(last, 0), axis=1)
    same = jnp.ones(history.shape, bool)
    for n in range(ngram):
        same &= jnp.roll(history, -n, axis=1) == wanted[:, n, None]
    # An occurrence starts before the last tokens themselves do.
    same &= (starts < lengths[:, None] - ngram) & (lengths[:, None] >= ngram)
    start = jnp.max(jnp.where(same, starts, -1), axis=1)
    places = start[:, None] + ngram + jnp.arange(count)
    known = (start[:, None] >= 0) & (places < lengths[:, None])
    found = jnp.take_along_axis(history, jnp.clip(places, 0, width - 1), axis=1)
    return jnp.where(known, found, -1)
