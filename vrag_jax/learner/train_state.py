"""Training state: parameters, optimiser state, step."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vrag_jax.models.common.axes import PARAMETER_AXES, parameter_shardings
from vrag_jax.models.common.lora import is_adapter
from vrag_jax.models.common.parameters import Params
from vrag_jax.parallel.processes import put
from vrag_jax.parallel.sharding import RULES, ArrayAxes, Rules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of a training run.

    Attributes:
      trainable: parameters that are updated, by path.
      frozen: parameters that are not, by path.
      opt_state: optax state of `trainable`.
      step: scalar int32, optimiser steps taken.
    """

    trainable: Params
    frozen: Params
    opt_state: optax.OptState
    step: jax.Array

    @property
    def params(self) -> Params:
        """All parameters, by path."""
        return {**self.trainable, **self.frozen}


def partition(params: Params, frozen_pattern: str) -> tuple[dict, dict]:
    """Splits parameters into trainable ones and those whose path matches.

    Args:
      params: parameters by path.
      frozen_pattern: regular expression searched in each path; '' freezes none. Where
        there are adapters, everything else is frozen.

    Returns:
      `(trainable, frozen)`.

    Raises:
      ValueError: if the pattern matches no parameter, or all of them.
    """
    matches = {path: bool(frozen_pattern and re.search(frozen_pattern, path)) for path in params}
    if frozen_pattern and (not any(matches.values()) or all(matches.values())):
        raise ValueError(
            f'frozen pattern {frozen_pattern!r} matches '
            f'{sum(matches.values())} of {len(params)} parameters'
        )
    if any(map(is_adapter, params)):
        matches = {path: matches[path] or not is_adapter(path) for path in params}
        if all(matches.values()):
            raise ValueError(f'frozen pattern {frozen_pattern!r} matches all adapters')
    trainable = {path: value for path, value in params.items() if not matches[path]}
    return trainable, {path: value for path, value in params.items() if matches[path]}


def create_train_state(
    params: Params, optimizer: optax.GradientTransformation, frozen_pattern: str = ''
) -> TrainState:
    """Returns the shapes of the state at step 0, or, under jit, the state."""
    trainable, frozen = partition(params, frozen_pattern)
    return TrainState(trainable, frozen, optimizer.init(trainable), jnp.zeros((), jnp.int32))


def place_train_state(
    params: Params, optimizer: optax.GradientTransformation, frozen_pattern: str,
    shardings: TrainState,
) -> TrainState:
    """Builds the state at step 0 from parameters.

    What is trained is copied, because updates donate it and the caller keeps its own.
    What is frozen is shared: a reference policy that starts from the same parameters
    costs no second copy of it.

    Args:
      params: arrays by path.
      optimizer: of the trainable ones.
      frozen_pattern: see `partition`.
      shardings: see `train_state_shardings`.
    """
    trainable, frozen = partition(params, frozen_pattern)
    # Under jit, so that nothing is ever whole on one device.
    copy = jax.jit(
        lambda p: (p, optimizer.init(p), jnp.zeros((), jnp.int32)),
        out_shardings=(shardings.trainable, shardings.opt_state, shardings.step))
    placed, opt_state, step = copy(trainable)
    return TrainState(placed, put(frozen, shardings.frozen), opt_state, step)


def train_state_shardings(
    params: Params, optimizer: optax.GradientTransformation, frozen_pattern: str, mesh: Mesh,
    rules: Rules = RULES, axes: Sequence[ArrayAxes] = PARAMETER_AXES,
) -> TrainState:
    """Returns the sharding of every array of the state, allocating nothing.

    An optimiser's moments are spread like the parameters they belong to; left to
    the compiler they would be whole on every device, because zeros depend on
    nothing.

    Args:
      params: parameters by path, arrays or shapes.
      optimizer: whose state it is.
      frozen_pattern: see `partition`.
      mesh: the devices.
      rules: mesh axes of each logical axis.
      axes: of the parameters, see `policy.PolicyFamily`.
    """
    create = lambda p: create_train_state(p, optimizer, frozen_pattern)  # noqa: E731
    return parameter_shardings(jax.eval_shape(create, dict(params)), mesh, rules, axes)
