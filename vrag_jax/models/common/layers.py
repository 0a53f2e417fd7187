"""Building blocks of both towers: linear layers, norms, SwiGLU, scanned stacks."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from vrag_jax.models.common.quantization import dequantized
from vrag_jax.parallel.sharding import devices_along

ATTENTION_OUTPUT = 'attention_output'  # Name for remat policies.
MASKED = -1e30  # Finite: a row that is masked throughout stays free of NaN.
INIT_STD = 0.02
UNROLLED_DEPTH = 4  # A stack of no more layers is unrolled, see `scan_layers`.

M = TypeVar('M', bound=nnx.Module)
C = TypeVar('C')


# What the backward pass need not compute again, by the name of the policy.
REMAT: dict[str, Callable | None] = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'attention': jax.checkpoint_policies.save_only_these_names(ATTENTION_OUTPUT),
    'dots': jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ATTENTION_OUTPUT)),
}


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How a model computes.

    Attributes:
      dtype: of activations and matrix products; norms and softmax use float32.
      param_dtype: of the parameters.
      remat: what the backward pass computes again: 'none', 'full' (everything but a
        layer's input), 'attention' (that, but not attention itself) or 'dots'
        (everything but products with weights, and attention).
      attention: how the decoder's attention is worked out, see
        `attention.causal_attention`.
    """

    dtype: jnp.dtype = jnp.dtype('float32')
    param_dtype: jnp.dtype = jnp.dtype('float32')
    remat: str = 'none'
    attention: str = 'plain'

    def __post_init__(self):
        if self.remat not in REMAT:
            raise ValueError(f'remat must be one of {tuple(REMAT)}, got {self.remat!r}')


class Linear(nnx.Linear):
    """A linear layer, whose kernel may be quantised and have a low-rank adapter beside it.

    Attributes:
      lora_a, lora_b: `[inputs, rank]` and `[rank, outputs]`, or None, see `lora`.
      lora_scale: of what the adapter adds.
      lora_dropout: share of the adapter's inputs that are dropped, where there is a key.
      dropout_key: of this call; None drops nothing.
    """

    lora_a: nnx.Param | None = None
    lora_b: nnx.Param | None = None
    lora_scale: float = 0.0
    lora_dropout: float = 0.0
    dropout_key: jax.Array | None = None

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        # As one two-dimensional product: the gradient of the kernel then contracts one axis
        # instead of all leading ones, which XLA's CPU backend does three times as fast;
        # elsewhere it is equal. Tokens that are split over devices cannot be joined so.
        split = devices_along('length', jax.sharding.get_abstract_mesh()) > 1
        x = inputs if split else inputs.reshape(-1, inputs.shape[-1])
        x = x.astype(self.dtype)
        out = x @ dequantized(self.kernel.get_value()).astype(x.dtype)
        if self.bias is not None:
            out += self.bias[...].astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            if self.dropout_key is not None:
                keep = jax.random.bernoulli(self.dropout_key, 1 - self.lora_dropout, x.shape)
                x = jnp.where(keep, x / (1 - self.lora_dropout), 0)
            low = x @ self.lora_a[...].astype(x.dtype)
            out += low @ self.lora_b[...].astype(x.dtype) * self.lora_scale
        return out.reshape(*inputs.shape[:-1], out.shape[-1])


def give_dropout_keys(module: nnx.Module, key: jax.Array) -> None:
    """Gives each adapter of a layer a random key for the dropout of its inputs."""
    number = 0
    for _, child in nnx.iter_graph(module):
        if isinstance(child, Linear) and child.lora_a is not None:
            child.dropout_key = jax.random.fold_in(key, number)
            number += 1


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


def layer_norm(size: int, epsilon: float, numerics: Numerics, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm whose statistics are float32."""
    return nnx.LayerNorm(size, epsilon=epsilon, dtype=numerics.dtype,
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
        step = jax.checkpoint(step, prevent_cse=unrolled, policy=REMAT[numerics.remat])
    return jax.lax.scan(step, carry, layers, unroll=depth if unrolled else 1)[0]
