"""Frozen kernels in 8 and 4 bits against rounding by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('qwix')
from vrag_jax.models.common.layers import Linear  # noqa: E402
from vrag_jax.models.common.quantization import GROUP, dequantized, quantiser, require  # noqa: E402

PATH = 'language_model/layers/mlp/up_proj/kernel'
LARGEST = {'int8': 127.5, 'int4': 7.5}


@pytest.fixture(scope='module')
def kernel():
    """`[layers, inputs, outputs]`, of which some columns are much larger than others."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(2, 256, 24)) * rng.uniform(0.1, 10, (2, 1, 24))).astype(np.float32)


def scales(kernel, kind):
    """Of symmetric rounding: of each column, or of each group of its inputs."""
    layers, inputs, outputs = kernel.shape
    groups = kernel.reshape(layers, -1, GROUP[kind] or inputs, outputs)
    scale = np.abs(groups).max(axis=2, keepdims=True) / LARGEST[kind]
    return np.broadcast_to(scale, groups.shape).reshape(kernel.shape)


@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_what_is_stored_are_the_nearest_whole_numbers_of_scales(kernel, kind):
    stored = quantiser(kind, jnp.dtype('float32'))(PATH, jnp.asarray(kernel))
    assert stored.qvalue.dtype == kind and stored.qvalue.shape == kernel.shape
    value, scale = np.asarray(dequantized(stored)), scales(kernel, kind)
    np.testing.assert_allclose(value / scale, np.round(value / scale), atol=1e-3)
    # The largest of a column lies half way between two numbers.
    np.testing.assert_array_less(np.abs(value - kernel), 0.501 * scale)


def test_memory_is_a_quarter(kernel):
    stored = quantiser('int8', jnp.dtype('bfloat16'))(PATH, jnp.asarray(kernel))
    assert sum(x.nbytes for x in jax.tree.leaves(stored)) < kernel.nbytes / 4 * 1.02


@pytest.mark.parametrize('path', [
    'visual/blocks/mlp/up_proj/kernel', 'language_model/embed_tokens/embedding',
    'language_model/layers/attention/q_proj/bias', 'lm_head/kernel'])
def test_other_parameters_stay_as_they_are(kernel, path):
    assert quantiser('int8', jnp.dtype('float32'))(path, kernel) is kernel


def test_a_layer_computes_with_its_dequantised_kernel(kernel):
    from flax import nnx
    layer = Linear(256, 24, rngs=nnx.Rngs(0), use_bias=False)
    quantise = quantiser('int8', jnp.dtype('float32'))
    stored = jax.tree.map(lambda x: x[0], quantise(PATH, jnp.asarray(kernel)))
    layer.kernel = nnx.Param(stored)
    x = jax.random.normal(jax.random.key(1), (3, 256))
    np.testing.assert_allclose(layer(x), x @ dequantized(stored), rtol=1e-5, atol=1e-4)
    error = np.abs(layer(x) - x @ kernel[0])
    assert 0 < error.max() < 0.02 * np.abs(x @ kernel[0]).max()


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match='quantisation must be one of'):
        require('int3')
