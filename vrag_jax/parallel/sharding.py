"""Sharding by logical axes: what an array's dimensions are, and what each is spread over.

An array's path says what its dimensions are (`ArrayAxes`, which a model gives for its
parameters: the query projection's kernel is `layer`, `embed`, `heads`), and rules say over
which axes of the mesh each of these is spread (`RULES`: `heads` over `tensor`). Other layouts
of the same mesh are other rules: see `with_rules`.
"""

import contextlib
import contextvars
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

# What a dimension is spread over: a mesh axis, several, or nothing.
AxisNames = str | tuple[str, ...] | None
# Mesh axes of each logical axis.
Rules = Mapping[str, AxisNames]
# A regular expression searched in the path, and the logical axis of each dimension.
ArrayAxes = tuple[str, tuple[str | None, ...]]

RULES: Rules = {
    # Parameters. A layer is never split: layers are scanned over.
    'embed': 'fsdp',  # Hidden sizes.
    'heads': 'tensor',  # Heads of attention, and what is projected to them.
    'mlp': 'tensor',  # Hidden sizes of SwiGLU.
    'vocab': 'tensor',
    # Activations.
    'batch': ('data', 'fsdp'),  # Rows of a micro-batch, slots and cache blocks of the sampler.
    'length': 'sequence',  # Tokens of a row, where whole rows are run.
    'windows': ('data', 'fsdp', 'sequence'),  # Attention windows of images.
}

BATCH_AXES: tuple[ArrayAxes, ...] = (
    (r'images/', ('windows',)),
    # M-RoPE positions are the one array whose rows are not its leading axis.
    (r'position_ids$', (None, 'batch', 'length')),
    (r'', ('batch', 'length')),
)

# The sampler's blocks: parts first, heads fifth.
POOL_AXES: tuple[ArrayAxes, ...] = ((r'', ('batch', None, None, None, 'heads')),)

_RULES_IN_USE: contextvars.ContextVar[Rules] = contextvars.ContextVar('rules', default=RULES)


def with_rules(changes: Sequence[tuple[str, Sequence[str]]]) -> Rules:
    """Returns `RULES` with some logical axes spread over other mesh axes.

    Args:
      changes: logical axis and its mesh axes, () for none, e.g.
        `(('embed', ()), ('mlp', ('fsdp', 'tensor')))`.

    Raises:
      ValueError: for a logical axis that does not exist.
    """
    for name, _ in changes:
        if name not in RULES:
            raise ValueError(f'no logical axis {name!r}; there are {sorted(RULES)}')
    return {**RULES, **{name: tuple(axes) or None for name, axes in changes}}


def tree_shardings(
    tree: Any, mesh: Mesh, rules: Rules, axes: Sequence[ArrayAxes]
) -> Any:
    """Gives every array of a tree its sharding.

    The first entry of `axes` found in a leaf's path says what its dimensions are;
    without one the leaf is replicated. A dimension that its mesh axes do not divide is
    replicated, and only that dimension.

    Args:
      tree: any pytree of arrays or `ShapeDtypeStruct`s: an NNX state, a flat dict
        of parameters by path, an optimiser's state.
      mesh: the devices.
      rules: mesh axes of each logical axis.
      axes: logical axes by path; paths look like 'layers/attention/q_proj/kernel'.

    Returns:
      A tree of the same structure with `NamedSharding` leaves.

    Raises:
      ValueError: if an entry has more dimensions than the leaf, or a rule names an
        axis that the mesh does not have.
    """
    def leaf_sharding(path, leaf):
        name = leaf_path(path)
        dimensions = next((names for pattern, names in axes if re.search(pattern, name)), ())
        if not leaf.shape:
            dimensions = ()
        return NamedSharding(mesh, spec(dimensions, leaf.shape, mesh, rules, name))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def batch_sharding(mesh: Mesh, batch: Any, rules: Rules = RULES) -> Any:
    """Gives every array of a batch its sharding: rows over `batch`, tokens over `length`.

    Args:
      mesh: the devices.
      batch: pytree whose leaves are `[R, T]`, or `[R]`, except `position_ids`, `[3, R, T]`,
        and what is under `images`, windows first; what does not divide is replicated.
      rules: mesh axes of each logical axis.

    Returns:
      A tree of the same structure with `NamedSharding` leaves.
    """
    return tree_shardings(batch, mesh, rules, BATCH_AXES)


@contextlib.contextmanager
def sharded_over(mesh: Mesh | AbstractMesh | None, rules: Rules = RULES) -> Iterator[None]:
    """What `constrain` is about while a function is traced; None is no mesh.

    Raises:
      ValueError: if an axis of the mesh is not `Auto`. Newer releases of JAX make meshes of
        explicit axes by default, where a constraint asserts a sharding, not asks for one.
    """
    if mesh is None:
        yield
        return
    if set(mesh.axis_types) - {AxisType.Auto}:
        raise ValueError(f'expected a mesh of Auto axes, as parallel.mesh.make_mesh makes it, got '
                         f'{dict(zip(mesh.axis_names, mesh.axis_types, strict=True))}')
    abstract = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
    token = _RULES_IN_USE.set(rules)
    try:
        with jax.sharding.use_abstract_mesh(abstract):
            yield
    finally:
        _RULES_IN_USE.reset(token)


def constrain(x: jax.Array, dimensions: Sequence[str | None]) -> jax.Array:
    """Splits an array inside a jitted function, and its gradient in the same way.

    Args:
      x: any array.
      dimensions: logical axis of each leading dimension; the others are replicated, and
        so is a dimension that its mesh axes do not divide.

    Returns:
      The array; as it is, where no mesh is in use, see `sharded_over`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec_in_use(dimensions, x.shape))


def spec_in_use(dimensions: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """Returns the partition of an array under the mesh and rules in use."""
    return spec(dimensions, shape, jax.sharding.get_abstract_mesh(), _RULES_IN_USE.get())


def sharding_in_use(
    dimensions: Sequence[str | None], shape: Sequence[int]
) -> NamedSharding | None:
    """Returns what `constrain` would do to an array, for later; None where no mesh is in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else NamedSharding(mesh, spec_in_use(dimensions, shape))


def devices_along(name: str, mesh: Mesh | AbstractMesh | None, rules: Rules | None = None) -> int:
    """Returns over how many devices a logical axis is spread; rules in use by default."""
    if mesh is None or mesh.empty:
        return 1
    rules = _RULES_IN_USE.get() if rules is None else rules
    return _count(_names(rules.get(name)), mesh, name)


def spec(
    dimensions: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh,
    rules: Rules, array: str = 'an array',
) -> PartitionSpec:
    """Returns the partition of an array.

    A mesh axis that an earlier dimension has is left out: an array can be split over it
    once.

    Args:
      dimensions: logical axis of each leading dimension.
      shape: of the array.
      mesh: the devices.
      rules: mesh axes of each logical axis.
      array: its name, for messages.

    Raises:
      ValueError: see `tree_shardings`.
    """
    if len(dimensions) > len(shape):
        raise ValueError(f'{array} has shape {tuple(shape)}, but its axes are {tuple(dimensions)}')
    used: set[str] = set()
    out: list[AxisNames] = []
    for size, name in zip(shape, dimensions, strict=False):
        axes = tuple(a for a in _names(rules.get(name) if name else None) if a not in used)
        if size % _count(axes, mesh, name):
            axes = ()
        used |= set(axes)
        out.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*out)


def leaf_path(path: tuple[Any, ...]) -> str:
    """Returns a key path as 'a/b/c', without the '/value' that NNX variables add."""
    return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


def _names(axes: AxisNames) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def _count(axes: Sequence[str], mesh: Mesh | AbstractMesh, name: str | None) -> int:
    for axis in axes:
        if axis not in mesh.shape:
            raise ValueError(f'the rule of {name!r} names the mesh axis {axis!r}, but the mesh '
                             f'has {tuple(mesh.shape)}')
    return math.prod(mesh.shape[axis] for axis in axes)
