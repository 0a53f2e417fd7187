"""Gradients of tables are sums over all that was looked up, however often a row was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.parallel.sharding import sharded_over

CONFIG = preset('tiny', vocab_size=64)
EMBEDDING = 'language_model/embed_tokens/embedding'
REPEATED, OFTEN = 7, 4000


def embedding_gradient(param_dtype, tokens, weights, mesh=None):
    """Gradient of the table for a weighted sum of `[B, T, D]` embeddings in bfloat16."""
    graphdef, params = flat_params(Qwen2_5_VL(
        CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=param_dtype))

    def loss(table):
        with sharded_over(mesh):
            model = merge(graphdef, {**params, EMBEDDING: table})
            x = model.language_model.embed(tokens)
        assert x.dtype == jnp.bfloat16
        return jnp.sum(x * weights, dtype=jnp.float32)

    return np.asarray(jax.jit(jax.grad(loss))(params[EMBEDDING]), np.float64)


def by_hand(tokens, weights):
    """The same in float64."""
    out = np.zeros((CONFIG.text.vocab_size, CONFIG.text.hidden_size))
    np.add.at(out, np.asarray(tokens), np.asarray(weights, np.float64))
    return out


def drawn(rows, length, repeats, mean=1.0):
    """Tokens among which one stands `repeats` times, and bfloat16 weights of embeddings."""
    rng = np.random.default_rng(repeats)
    tokens = np.arange(rows * length, dtype=np.int32) % 7  # Others than REPEATED.
    tokens[rng.permutation(len(tokens))[:repeats]] = REPEATED
    shape = (rows, length, CONFIG.text.hidden_size)
    return (jnp.asarray(tokens.reshape(rows, length)),
            jnp.asarray(mean + 0.1 * rng.normal(size=shape), jnp.bfloat16))


@pytest.mark.parametrize('repeats', [300, 1000, OFTEN])
def test_equal_contributions_of_a_token_all_count(repeats):
    tokens = jnp.full((1, repeats), REPEATED)
    weights = jnp.ones((1, repeats, CONFIG.text.hidden_size), jnp.bfloat16)
    got = embedding_gradient(jnp.float32, tokens, weights)
    np.testing.assert_array_equal(got[REPEATED], repeats)


@pytest.mark.parametrize(('param_dtype', 'tolerance'), [(jnp.float32, 1e-5), (jnp.bfloat16, 4e-3)])
@pytest.mark.parametrize('shape', [None, {'fsdp': 2, 'tensor': 2}, {'data': 2, 'sequence': 2}])
def test_a_repeated_token_has_the_gradient_of_float64(param_dtype, tolerance, shape):
    # Rounded to the parameters' dtype once: half of the last of 8 bits.
    mesh = None if shape is None else make_mesh(shape, jax.devices()[:4])
    tokens, weights = drawn(4, 1024, 3000)
    got = embedding_gradient(param_dtype, tokens, weights, mesh)
    np.testing.assert_allclose(got, by_hand(tokens, weights), rtol=tolerance)


def test_an_image_that_many_rows_show_has_the_gradient_of_float64():
    """Rows of a micro-batch share what the vision tower made of their images."""
    graphdef, params = flat_params(Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    model = merge(graphdef, params)
    index, weights = drawn(4, 1024, 3000)
    index = index.at[:, ::5].set(-1)  # Text among them.
    features = jnp.ones((CONFIG.text.vocab_size, CONFIG.text.hidden_size), jnp.bfloat16)

    def loss(features):
        return jnp.sum(model.embed(jnp.zeros_like(index), features, index) * weights,
                       dtype=jnp.float32)

    got = np.asarray(jax.jit(jax.grad(loss))(features), np.float64)
    shown = np.asarray(index) >= 0
    want = by_hand(np.where(shown, index, 0), np.where(shown[..., None], weights, 0))
    np.testing.assert_allclose(got, want, rtol=4e-3)
