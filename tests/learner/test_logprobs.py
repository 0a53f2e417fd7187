"""Chunked log-probs against a plain softmax: values, gradients, memory, devices."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vrag_jax.learner.logprobs import count_chunks, target_logprobs
from vrag_jax.parallel.mesh import make_mesh

ROWS, LENGTH, WIDTH, VOCAB = 2, 7, 4, 48


@dataclasses.dataclass
class Head:
    """A projection with ids that are never sampled."""

    kernel: jax.Array
    suppressed: tuple[int, ...] = ()

    @property
    def config(self):
        return types.SimpleNamespace(suppressed_ids=self.suppressed)

    def unembedding(self):
        return self.kernel


@pytest.fixture(scope='module')
def head():
    """Hidden states, targets and kernel."""
    rng = np.random.default_rng(1)
    return (rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32),
            rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
            rng.normal(size=(WIDTH, VOCAB)).astype(np.float32))


def plain(hidden, kernel, targets, temperature, suppressed=()):
    """Log-probs and entropies by autodiff of a softmax over all ids."""
    logits = hidden @ kernel / temperature
    hide = np.isin(np.arange(kernel.shape[1]), suppressed)
    log_p = jax.nn.log_softmax(jnp.where(hide, -1e30, logits))
    p = jnp.where(hide, 0.0, jnp.exp(log_p))
    chosen = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return chosen, -jnp.sum(p * jnp.where(hide, 0.0, log_p), axis=-1)


SIGNS = np.sin(np.arange(ROWS * LENGTH)).reshape(ROWS, LENGTH)


@pytest.mark.parametrize('chunk', [0, 3, 12, 16, 24, 48, 100])
@pytest.mark.parametrize('temperature', [1.0, 0.7])
@pytest.mark.parametrize('suppressed', [(), (0, 5, 47)], ids=['all ids', 'some ids'])
def test_values_and_gradients_are_those_of_the_plain_softmax(
        head, chunk, temperature, suppressed):
    hidden, targets, kernel = head
    targets = np.where(np.isin(targets, suppressed), 7, targets)

    def weighted(hidden, kernel, of):
        logp, entropy = of(hidden, kernel)
        return (logp * SIGNS + 0.3 * entropy * np.cos(SIGNS)).sum(), (logp, entropy)

    def ours(hidden, kernel):
        return target_logprobs(Head(kernel, suppressed), hidden, targets,
                               temperature=temperature, chunk=chunk, entropy_gradient=True)

    def theirs(hidden, kernel):
        return plain(hidden, kernel, targets, temperature, suppressed)

    differentiate = jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)
    got, want = (differentiate(hidden, kernel, of) for of in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
    if suppressed:
        np.testing.assert_array_equal(got[1][1][:, list(suppressed)], 0.0)


def test_in_float64_by_numpy(head):
    hidden, targets, kernel = head
    logits = hidden.astype(np.float64) @ kernel
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    logp, entropy = target_logprobs(Head(kernel), hidden, targets, chunk=16)
    chosen = np.take_along_axis(probs, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(logp, np.log(chosen), atol=1e-5)
    np.testing.assert_allclose(entropy, -(probs * np.log(probs)).sum(-1), atol=1e-5)


def test_an_entropy_that_is_a_metric_has_no_gradient(head):
    hidden, targets, kernel = head

    def entropies(hidden, entropy_gradient):
        return target_logprobs(Head(kernel), hidden, targets,
                               entropy_gradient=entropy_gradient)[1].sum()

    assert not np.any(jax.grad(entropies)(hidden, False))
    assert np.any(jax.grad(entropies)(hidden, True))


def test_the_entropy_of_a_uniform_distribution():
    _, entropy = target_logprobs(
        Head(jnp.zeros((WIDTH, VOCAB))), jnp.ones((1, 2, WIDTH)), jnp.zeros((1, 2), int), chunk=8)
    np.testing.assert_allclose(entropy, math.log(VOCAB), rtol=1e-6)


def test_large_logits_overflow_nothing():
    kernel = jnp.asarray([[100.0, -100.0, 90.0, 0.0]])
    hidden, targets = jnp.full((1, 1, 1), 50.0), jnp.zeros((1, 1), int)
    for chunk in (0, 1, 2):
        logp, entropy = target_logprobs(Head(kernel), hidden, targets, chunk=chunk)
        assert float(logp[0, 0]) == 0.0 and float(entropy[0, 0]) == 0.0


def test_half_precision_keeps_its_sums_in_single(head):
    hidden, targets, kernel = head
    want, _ = target_logprobs(Head(kernel), hidden, targets)
    half = jnp.asarray(hidden, jnp.bfloat16)
    got, _ = target_logprobs(Head(kernel), half, targets, chunk=16)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.1)
    gradient = jax.grad(lambda k: target_logprobs(Head(k), half, targets, chunk=16)[0].sum())
    assert gradient(kernel).dtype == jnp.float32


@pytest.mark.parametrize(('vocabulary', 'chunk', 'count'), [
    (48, 0, 1), (48, 48, 1), (48, 47, 2), (48, 24, 2), (48, 23, 3), (48, 10, 6),
    (151936, 8192, 32), (152064, 8192, 22)])
def test_numbers_of_chunks(vocabulary, chunk, count):
    # 151,936 is 2^7 * 1187 and 152,064 is 2^9 * 3^3 * 11.
    assert count_chunks(vocabulary, chunk) == count
    assert vocabulary % count == 0 and (not chunk or vocabulary // count <= chunk)


def test_a_vocabulary_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match='vocab_chunk = 10: a vocabulary of 151'):
        count_chunks(151, 10)


@pytest.mark.parametrize('shape', [{'data': 8}, {'data': 2, 'tensor': 4}], ids=str)
def test_eight_devices_compute_what_one_does(shape):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(8, 6, 16)).astype(np.float32)
    kernel = rng.normal(size=(16, 64)).astype(np.float32)
    targets = rng.integers(0, 64, (8, 6)).astype(np.int32)

    def loss(hidden, kernel):
        logp, entropy = target_logprobs(
            Head(kernel), hidden, targets, chunk=16, entropy_gradient=True)
        return (logp * np.sin(targets) + entropy).sum()

    want = jax.value_and_grad(loss, argnums=(0, 1))(hidden, kernel)
    mesh = make_mesh(shape)
    rows, columns = NamedSharding(mesh, P('data')), NamedSharding(mesh, P(None, 'tensor'))
    placed = jax.device_put(hidden, rows), jax.device_put(kernel, columns)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), out_shardings=(
        NamedSharding(mesh, P()), (rows, columns)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), step(*placed), want)
    # No device ever has the whole projection.
    text = step.lower(*placed).compile().as_text()
    assert shape.get('tensor', 1) == 1 or 'f32[16,64]' not in text


def test_peak_memory_at_the_published_vocabulary():
    """151,936 ids, 2,048 tokens: one array of all logits alone would be 1.2 GB."""
    tokens, width, vocabulary = 2048, 64, 151936
    hidden = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    kernel = jax.ShapeDtypeStruct((width, vocabulary), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def temporaries(chunk):
        def loss(hidden, kernel, targets):
            logp, entropy = target_logprobs(
                Head(kernel), hidden, targets, chunk=chunk, entropy_gradient=True)
            return logp.sum() + entropy.sum()
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        compiled = step.lower(hidden, kernel, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits, projection = 4 * tokens * vocabulary, 4 * width * vocabulary
    assert temporaries(8192) < 0.25 * logits
    # What remains is a few chunks of logits, and no more than two projections.
    assert temporaries(8192) < 6 * logits / 32 + 2 * projection
    assert temporaries(0) > logits
