"""What both towers are made of: linear layers, norms, SwiGLU, stacks of layers."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

MASKED = -1e30  # Finite: a row that is masked throughout stays free of NaN.
INIT_STD = 0.02
UNROLLED_DEPTH = 4  # A stack of no more layers is unrolled, see `scan_layers`.

M = TypeVar('M', bound=nnx.Module)
C = TypeVar('C')


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How a model computes.

    Attributes:
      dtype: of activations and matrix products; norms and softmax use float32.
      param_dtype: of the parameters.
      remat: what the backward pass computes again: 'none', 'full' (everything but
        the layer's input) or 'dots' (everything but products with weights).
    """

    dtype: jnp.dtype = jnp.dtype('float32')
    param_dtype: jnp.dtype = jnp.dtype('float32')
    remat: str = 'none'

    def __post_init__(self):
        if self.remat not in ('none', 'full', 'dots'):
            raise ValueError(f"remat must be 'none', 'full' or 'dots', got {self.remat!r}")


class Linear(nnx.Linear):
    """A linear layer as one two-dimensional product.

    The gradient of the kernel then contracts one axis instead of all leading
    ones, which XLA's CPU backend does three times as fast; elsewhere it is equal.
    """

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        rows = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return rows.reshape(*inputs.shape[:-1], rows.shape[-1])


def linear(
    inputs: int, outputs: int, numerics: Numerics, rngs: nnx.Rngs, *, bias: bool,
    init_scale: float = 1.0,
) -> Linear:
    """A linear layer with kernel `[inputs, outputs]`, drawn with variance `scale^2 / inputs`."""
    return Linear(
        inputs, outputs, use_bias=bias, dtype=numerics.dtype, param_dtype=numerics.param_dtype,
        kernel_init=nnx.initializers.normal(init_scale * inputs**-0.5), rngs=rngs)


def residual_scale(layers: int) -> float:
    """Scale of what a layer adds, so that the sum over all layers starts of order one."""
    return (2 * layers) ** -0.5


def rms_norm(size: int, epsilon: float, numerics: Numerics, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMSNorm whose statistics are float32."""
    return nnx.RMSNorm(size, epsilon=epsilon, dtype=numerics.dtype,
                       param_dtype=numerics.param_dtype, rngs=rngs)


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))`, `[..., D] -> [..., D]`."""

    def __init__(self, size: int, hidden: int, numerics: Numerics, rngs: nnx.Rngs, *, bias: bool,
                 out_scale: float = 1.0):
        self.gate_proj = linear(size, hidden, numerics, rngs, bias=bias)
        self.up_proj = linear(size, hidden, numerics, rngs, bias=bias)
        self.down_proj = linear(
            hidden, size, numerics, rngs, bias=bias, init_scale=out_scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


def stack_layers(make: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """Makes `depth` layers as one module whose parameters have a leading axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs: nnx.Rngs) -> M:
        return make(rngs)

    return create(rngs)


def scan_layers(body: Callable, carry: C, layers: Any, numerics: Numerics) -> C:
    """Runs a stack of layers: `carry = body(carry, layer)` for each.

    Compile time does not grow with depth, except that a few layers are unrolled:
    a scan copies what the backward pass needs in and out of stacked buffers,
    which costs the tiny model a third of its training step on a CPU.

    Args:
      body: one layer.
      carry: what goes from layer to layer.
      layers: pytree of arrays with a leading layer axis.
      numerics: says what the backward pass computes again.

    Returns:
      The last carry.
    """
    def step(carry: C, layer: Any) -> tuple[C, None]:
        return body(carry, layer), None

    depth = jax.tree.leaves(layers)[0].shape[0]
    unrolled = depth <= UNROLLED_DEPTH
    if numerics.remat != 'none':
        policy = None
        if numerics.remat == 'dots':
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        step = jax.checkpoint(step, prevent_cse=unrolled, policy=policy)
    return jax.lax.scan(step, carry, layers, unroll=depth if unrolled else 1)[0]
