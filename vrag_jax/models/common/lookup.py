"""Embedding lookup in the compute dtype with a float32 gradient."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vrag_jax.parallel.sharding import sharding_in_use


def lookup(
    table: jax.Array, index: jax.Array, dtype: jnp.dtype, dimensions: Sequence[str | None] = ()
) -> jax.Array:
    """Returns `table[index]` in a dtype.

    The gradient of a row is the sum over all places that look it up. It is summed in float32
    and rounded once: in bfloat16 a sum of ones ends at 256, and padding, line breaks and the
    marks of turns stand thousands of times in a batch.

    Args:
      table: `[N, D]`.
      index: integers of any shape, rows of the table.
      dtype: of the result. The table is cast, not what was looked up: between devices a
        table goes in few bytes.
      dimensions: logical axes of the table as it is looked up, and of its gradient as it is
        summed, see `sharding.constrain`; () leaves both to the compiler.

    Returns:
      `[*index.shape, D]`.
    """
    sharding = sharding_in_use(dimensions, table.shape) if dimensions else None
    return _lookup(table, index, jnp.dtype(dtype), table.shape, table.dtype, sharding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _lookup(table, index, dtype, shape, table_dtype, sharding):
    del shape, table_dtype
    return _placed(table.astype(dtype), sharding)[index]


def _forward(table, index, dtype, shape, table_dtype, sharding):
    return _lookup(table, index, dtype, shape, table_dtype, sharding), index


def _backward(dtype, shape, table_dtype, sharding, index, gradient):
    del dtype
    total = jnp.zeros(shape, jnp.float32).at[index].add(gradient.astype(jnp.float32))
    # Added up over the devices in float32 too, and rounded then.
    return _placed(total, sharding).astype(table_dtype), None


def _placed(x: jax.Array, sharding) -> jax.Array:
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


_lookup.defvjp(_forward, _backward)
