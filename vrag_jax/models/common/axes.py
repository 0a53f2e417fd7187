"""Logical axes of the parameters of transformers, by path, and the shardings that follow."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from vrag_jax.parallel.sharding import RULES, ArrayAxes, Rules, tree_shardings

# The contracted dimension of the second matrix of a pair is what the output of the first
# is, so that a block exchanges activations once. A quantised kernel is two arrays with the
# kernel's dimensions, under its path.
_IN = r'(layers|blocks)/(.*/)?(q_proj|k_proj|v_proj|qkv)/'
_OUT = r'(layers|blocks)/(.*/)?(o_proj|proj)/'
_UP = r'(layers|blocks)/(.*/)?(gate_proj|up_proj|fc1)/'
_DOWN = r'(layers|blocks)/(.*/)?(down_proj|fc2)/'
PARAMETER_AXES: tuple[ArrayAxes, ...] = (
    (_IN + r'kernel(/|$)', ('layer', 'embed', 'heads')),
    (_OUT + r'kernel(/|$)', ('layer', 'heads', 'embed')),
    (_UP + r'kernel(/|$)', ('layer', 'embed', 'mlp')),
    (_DOWN + r'kernel(/|$)', ('layer', 'mlp', 'embed')),
    (_IN + r'lora_a$', ('layer', 'embed', None)),
    (_IN + r'lora_b$', ('layer', None, 'heads')),
    (_OUT + r'lora_a$', ('layer', 'heads', None)),
    (_OUT + r'lora_b$', ('layer', None, 'embed')),
    (_UP + r'lora_a$', ('layer', 'embed', None)),
    (_UP + r'lora_b$', ('layer', None, 'mlp')),
    (_DOWN + r'lora_a$', ('layer', 'mlp', None)),
    (_DOWN + r'lora_b$', ('layer', None, 'embed')),
    (r'merger/fc1/kernel(/|$)', ('embed', 'mlp')),
    (r'merger/fc2/kernel(/|$)', ('mlp', 'embed')),
    (r'embed_tokens/embedding$', ('vocab', 'embed')),
    (r'lm_head/kernel(/|$)', ('embed', 'vocab')),
)


def parameter_shardings(
    params: Any, mesh: Mesh, rules: Rules = RULES, axes: Sequence[ArrayAxes] = PARAMETER_AXES
) -> Any:
    """Gives every parameter its sharding, and whatever is shaped and named like it.

    Args:
      params: parameters by path, an NNX state, an optimiser's state; arrays or shapes.
      mesh: the devices.
      rules: mesh axes of each logical axis.
      axes: of the model's family, see `policy.PolicyFamily.axes`.

    Returns:
      See `sharding.tree_shardings`.
    """
    return tree_shardings(params, mesh, rules, axes)
