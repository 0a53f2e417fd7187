"""Sharding by rules: parameter paths to partition specs, rows of a batch to devices."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# What one dimension is split over: a mesh axis, several, or nothing.
AxisNames = str | tuple[str, ...] | None
# A regular expression searched in the path, and the split of each dimension.
Rule = tuple[str, tuple[AxisNames, ...]]

BATCH_AXES = ('data', 'fsdp')

# Stacked layers have a leading axis, which is scanned and never split. The
# contracted dimension of the second matrix of a pair lies where the output of
# the first does, so that a block exchanges activations once.
QWEN2_5_VL_RULES: tuple[Rule, ...] = (
    (r'(layers|blocks)/.*(q_proj|k_proj|v_proj|qkv|gate_proj|up_proj)/kernel$',
     (None, 'fsdp', 'tensor')),
    (r'(layers|blocks)/.*(o_proj|proj|down_proj)/kernel$', (None, 'tensor', 'fsdp')),
    (r'merger/fc1/kernel$', ('fsdp', 'tensor')),
    (r'merger/fc2/kernel$', ('tensor', 'fsdp')),
    (r'embed_tokens/embedding$', ('tensor', 'fsdp')),
    (r'lm_head/kernel$', ('fsdp', 'tensor')),
)

# M-RoPE positions are the one array whose rows are not its leading axis.
BATCH_RULES: tuple[Rule, ...] = (
    (r'position_ids$', (None, BATCH_AXES)),
    (r'', (BATCH_AXES,)),
)

# The sampler's pages: parts first, heads fifth.
POOL_RULES: tuple[Rule, ...] = (
    (r'', (BATCH_AXES, None, None, None, 'tensor')),
)


def tree_shardings(tree: Any, mesh: Mesh, rules: Sequence[Rule] = QWEN2_5_VL_RULES) -> Any:
    """Gives every array of a tree its sharding.

    The first rule found in a leaf's path decides; without one the leaf is
    replicated. A dimension that its axes do not divide is replicated, and only
    that dimension.

    Args:
      tree: any pytree of arrays or `ShapeDtypeStruct`s: an NNX state, a flat dict
        of parameters by path, an optimiser's state.
      mesh: the devices.
      rules: in order; paths look like
        'language_model/layers/attention/q_proj/kernel'.

    Returns:
      A tree of the same structure with `NamedSharding` leaves.

    Raises:
      ValueError: if a rule splits more dimensions than the leaf has, or names an
        axis that the mesh does not have.
    """
    def leaf_sharding(path, leaf):
        return NamedSharding(mesh, _spec(leaf_path(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def batch_sharding(mesh: Mesh, batch: Any) -> Any:
    """Gives every array of a batch its sharding: rows over `data` and `fsdp`.

    Args:
      mesh: the devices.
      batch: pytree whose leaves have rows `R` first, `[R, ...]`, except
        `position_ids`, `[3, R, T]`; an `R` that does not divide is replicated.

    Returns:
      A tree of the same structure with `NamedSharding` leaves.
    """
    return tree_shardings(batch, mesh, BATCH_RULES)


def constrain(x: jax.Array, split: tuple[AxisNames, ...]) -> jax.Array:
    """Splits an array inside a jitted function, and its gradient in the same way.

    Args:
      x: any array.
      split: mesh axes of each leading dimension; the others are replicated, and so is
        a dimension that its axes do not divide.

    Returns:
      The array; as it is, where no mesh is in use (`jax.sharding.use_abstract_mesh`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _spec('', x.shape, mesh, [('', split)]))


def leaf_path(path: tuple[Any, ...]) -> str:
    """Returns a key path as 'a/b/c', without the '/value' that NNX variables add."""
    return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh,
          rules: Sequence[Rule]) -> PartitionSpec:
    pattern, split = next(
        (rule for rule in rules if re.search(rule[0], path)), ('', ()))
    if not shape:
        return PartitionSpec()
    if len(split) > len(shape):
        raise ValueError(f'sharding rule {pattern!r} splits {len(split)} dimensions, but '
                         f'{path} has shape {shape}')
    return PartitionSpec(*(
        axes if dimension % _devices_along(axes, mesh, pattern) == 0 else None
        for dimension, axes in zip(shape, split, strict=False)))


def _devices_along(axes: AxisNames, mesh: Mesh | AbstractMesh, pattern: str) -> int:
    count = 1
    for axis in (axes,) if isinstance(axes, str) else axes or ():
        if axis not in mesh.shape:
            raise ValueError(f'sharding rule {pattern!r} names the axis {axis!r}, but the mesh '
                             f'has {tuple(mesh.shape)}')
        count *= mesh.shape[axis]
    return count
