"""Log-probs and entropies of tokens without an array of all logits, forwards or backwards."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vrag_jax.models.common.layers import MASKED

LANES = 16  # Parts of the vocabulary that may lie on different devices.


@dataclasses.dataclass(frozen=True)
class _Options:
    """Static choices.

    Attributes:
      chunks: parts of the vocabulary, one after the other.
      temperature: divides the logits.
      entropy_gradient: whether entropies are differentiated.
      suppressed: ids whose probability is zero.
    """

    chunks: int
    temperature: float
    entropy_gradient: bool
    suppressed: tuple[int, ...]


def target_logprobs(
    model,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 0,
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of target tokens, and entropies.

    The softmax is worked out over one chunk of the vocabulary after the other; what is
    kept for the backward pass is a token's log-normaliser. There each chunk's logits
    are made again and turned into their gradient,

        g * (onehot - p) - h * p * (log p + entropy),

    with `g` and `h` those of log-prob and entropy. Chunks are of the vocabulary, not of
    tokens: a chunk's gradient of the projection is then whole, and devices that share
    the tokens add it up once, not once for every chunk of tokens.

    Args:
      model: has `unembedding() -> [D, V]` and `config.suppressed_ids`.
      hidden: `[R, T, D]` final hidden states.
      targets: `[R, T]` int32, the token that follows each position.
      temperature: the logits are divided by it, as in sampling.
      chunk: most ids for which logits exist at a time; 0 is all at once.
      entropy_gradient: whether entropies will be differentiated.

    Returns:
      `(logprobs, entropies)`, each `[R, T]` float32.
    """
    kernel = model.unembedding()
    chunks = count_chunks(kernel.shape[-1], chunk)
    options = _Options(chunks, temperature, entropy_gradient, tuple(model.config.suppressed_ids))
    return _logprobs(hidden, kernel, targets, options)


def count_chunks(vocabulary: int, chunk: int) -> int:
    """Returns into how many equal parts a vocabulary is split, none above `chunk` ids.

    Raises:
      ValueError: if only very small parts would be equal.
    """
    if not 0 < chunk < vocabulary:
        return 1
    fewest = math.ceil(vocabulary / chunk)
    for count in range(fewest, 8 * fewest):
        if vocabulary % count == 0:
            return count
    raise ValueError(f'vocab_chunk = {chunk}: a vocabulary of {vocabulary} cannot be split into '
                     f'{fewest} to {8 * fewest - 1} equal parts; try another size, or 0')


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _logprobs(hidden, kernel, targets, options: _Options):
    return _forward(hidden, kernel, targets, options)[0]


def _parts(kernel: jax.Array, chunks: int) -> tuple[jax.Array, np.ndarray]:
    """Views `[D, V]` as `[D, S, C, V / (S C)]`; chunk `c` is `[:, :, c]`, and its ids alike.

    A chunk takes a piece of each of `S` parts of the vocabulary, so that devices that
    share the vocabulary each have a part of every chunk.
    """
    size, vocabulary = kernel.shape
    lanes = math.gcd(vocabulary // chunks, LANES)
    shape = (lanes, chunks, vocabulary // (lanes * chunks))
    return kernel.reshape(size, *shape), np.arange(vocabulary, dtype=np.int32).reshape(shape)


def _chunk_logits(hidden, parts, ids, number, options: _Options) -> tuple[jax.Array, jax.Array]:
    """Logits `[R, T, S, v]` float32 of a chunk, and its ids `[S, v]`."""
    part = jax.lax.dynamic_index_in_dim(parts, number, axis=2, keepdims=False)
    own = jax.lax.dynamic_index_in_dim(jnp.asarray(ids), number, axis=1, keepdims=False)
    rows, length, size = hidden.shape
    flat = jnp.matmul(hidden.reshape(-1, size), part.reshape(size, -1).astype(hidden.dtype),
                      preferred_element_type=jnp.float32)
    logits = flat.reshape(rows, length, *own.shape) / options.temperature
    if options.suppressed:
        hide = np.zeros(ids.size, bool)
        hide[list(options.suppressed)] = True
        hide_part = jax.lax.dynamic_index_in_dim(
            jnp.asarray(hide.reshape(ids.shape)), number, axis=1, keepdims=False)
        logits = jnp.where(hide_part, MASKED, logits)
    return logits, own


def _forward(hidden, kernel, targets, options: _Options):
    parts, ids = _parts(kernel, options.chunks)

    def step(carry, number):
        most, total, weighted, chosen = carry
        logits, own = _chunk_logits(hidden, parts, ids, number, options)
        new = jnp.maximum(most, jnp.max(logits, axis=(-2, -1)))
        shrink = jnp.exp(most - new)
        weights = jnp.exp(logits - new[..., None, None])
        total = total * shrink + jnp.sum(weights, axis=(-2, -1))
        weighted = weighted * shrink + jnp.sum(weights * logits, axis=(-2, -1))
        hit = own == targets[..., None, None]
        chosen += jnp.sum(jnp.where(hit, logits, 0.0), axis=(-2, -1))
        return (new, total, weighted, chosen), None

    zeros = jnp.zeros(targets.shape, jnp.float32)
    carry = (zeros + MASKED, zeros, zeros, zeros)
    if options.chunks == 1:
        carry, _ = step(carry, 0)
    else:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(options.chunks))
    most, total, weighted, chosen = carry
    normaliser = most + jnp.log(total)
    entropies = normaliser - weighted / total
    kept = (hidden, kernel, targets, normaliser, entropies)
    return (chosen - normaliser, entropies), kept


def _backward(options: _Options, kept, gradients):
    hidden, kernel, targets, normaliser, entropies = kept
    of_logprobs, of_entropies = gradients
    parts, ids = _parts(kernel, options.chunks)
    rows, length, size = hidden.shape
    flat_hidden = hidden.reshape(-1, size)

    def step(carry, number):
        of_hidden, of_parts = carry
        logits, own = _chunk_logits(hidden, parts, ids, number, options)
        log_p = logits - normaliser[..., None, None]
        p = jnp.exp(log_p)
        hit = own == targets[..., None, None]
        change = of_logprobs[..., None, None] * (hit - p)
        if options.entropy_gradient:
            change -= of_entropies[..., None, None] * jnp.where(
                p > 0, p * (log_p + entropies[..., None, None]), 0.0)
        change = (change / options.temperature).reshape(rows * length, -1).astype(hidden.dtype)
        part = jax.lax.dynamic_index_in_dim(parts, number, axis=2, keepdims=False)
        of_hidden += jnp.matmul(change, part.reshape(size, -1).T.astype(hidden.dtype),
                                preferred_element_type=jnp.float32).reshape(hidden.shape)
        of_part = jnp.matmul(flat_hidden.T, change, preferred_element_type=jnp.float32)
        of_parts = jax.lax.dynamic_update_index_in_dim(
            of_parts, of_part.reshape(part.shape).astype(kernel.dtype), number, axis=2)
        return (of_hidden, of_parts), None

    carry = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(parts))
    if options.chunks == 1:
        carry, _ = step(carry, 0)
    else:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(options.chunks))
    of_hidden, of_parts = carry
    return of_hidden.astype(hidden.dtype), of_parts.reshape(kernel.shape), None


_logprobs.defvjp(_forward, _backward)
