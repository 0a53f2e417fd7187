"""Frozen kernels in 8 or 4 bits: a quarter or an eighth of float32's memory.

Only what is stored is small: products are worked out in the model's dtype, each kernel
dequantised just before its own. Needs qwix (the extra `quantization`).
"""

import importlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

KINDS = ('', 'int8', 'int4')
# Values that share a scale, along the kernel's inputs: one scale of a whole column is
# good enough for 8 bits and not for 4.
GROUP = {'int8': 0, 'int4': 128}
# The decoder's matrices, which are nearly all of a model.
_QUANTISED = re.compile(r'^language_model/layers/.*/kernel$')


def require(kind: str) -> None:
    """Raises ValueError if the kind is unknown, or what it needs is not installed."""
    if kind not in KINDS:
        raise ValueError(f'quantisation must be one of {KINDS}, got {kind!r}')
    if kind:
        try:
            importlib.import_module('qwix')
        except ImportError as error:
            raise ValueError(f'{kind} needs qwix, which is not installed: '
                             "pip install -e '.[quantization]'") from error


def quantiser(kind: str, dtype: jnp.dtype) -> Callable[[str, Any], Any]:
    """Returns `(path, kernel [L, I, O]) -> quantised kernel`; other parameters pass through.

    Args:
      kind: one of `KINDS`.
      dtype: of the scales, and of what is dequantised.
    """
    require(kind)
    if not kind:
        return lambda path, value: value
    import qwix

    def quantise(path: str, value: jax.Array) -> Any:
        if not _QUANTISED.search(path):
            return value
        inputs = value.shape[1]
        group = GROUP[kind] or inputs
        if inputs % group:
            group = inputs
        return qwix.quantize(value, jnp.dtype(kind), channelwise_axes=(0, 2),
                             tiled_axes={1: group}, scale_dtype=dtype)

    return quantise


def dequantized(kernel: Any) -> jax.Array:
    """Returns a kernel as an array, whether it is quantised or not."""
    if not hasattr(kernel, 'qvalue'):
        return kernel
    import qwix

    return qwix.dequantize(kernel)
