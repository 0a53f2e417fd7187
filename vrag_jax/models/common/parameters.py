"""Parameters as a flat dict: '/'-joined path -> array.

Paths are what partitioning, sharding rules, weight decay masks and checkpoints
are written in, so the flat form is the one that is passed around; the module is
put together again inside jit, where it costs nothing.
"""

from collections.abc import Mapping
from typing import TypeVar

import jax
from flax import nnx, traverse_util

Params = Mapping[str, jax.Array]
M = TypeVar('M', bound=nnx.Module)


def flat_params(model: M) -> tuple[nnx.GraphDef[M], dict[str, jax.Array]]:
    """Splits a module into its graph definition and its parameters by path."""
    graphdef, state = nnx.split(model)
    return graphdef, traverse_util.flatten_dict(nnx.to_pure_dict(state), sep='/')


def merge(graphdef: nnx.GraphDef[M], params: Params) -> M:
    """Puts a module together again; the inverse of `flat_params`."""
    return nnx.merge(graphdef, traverse_util.unflatten_dict(dict(params), sep='/'))
