"""Temperature, top-k and top-p against sets and frequencies worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrag_jax.sampling.distribution import SamplingConfig, draw, truncate

PROBS = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = jnp.log(jnp.asarray(PROBS, jnp.float32))


def kept(top_k=0, top_p=1.0, logits=LOGITS):
    """Ids that a truncation leaves possible."""
    return set(np.flatnonzero(np.asarray(truncate(logits, top_k, top_p)) > -1e9).tolist())


@pytest.mark.parametrize(('top_k', 'ids'), [
    (0, {0, 1, 2, 3, 4}), (1, {1}), (2, {1, 3}), (3, {1, 3, 4}), (5, {0, 1, 2, 3, 4}),
    (99, {0, 1, 2, 3, 4})])
def test_top_k(top_k, ids):
    assert kept(top_k=top_k) == ids


@pytest.mark.parametrize(('top_p', 'ids'), [
    # In order: 0.4, 0.7, 0.85, 0.95, 1. The set is the smallest with so much mass.
    (0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 3, 4}),
    (0.84, {1, 3, 4}), (0.86, {0, 1, 3, 4}), (0.96, {0, 1, 2, 3, 4}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p(top_p, ids):
    assert kept(top_p=top_p) == ids


def test_top_p_counts_the_mass_that_top_k_has_left():
    # Of 0.4, 0.3, 0.15 the first is 0.47, the first two 0.82 of the mass.
    assert kept(3, 0.45) == {1}
    assert kept(3, 0.8) == {1, 3}
    assert kept(3, 0.85) == {1, 3, 4}


def test_logits_that_are_kept_are_not_changed():
    got = truncate(LOGITS, 2, 1.0)
    np.testing.assert_array_equal(got[jnp.asarray([1, 3])], LOGITS[jnp.asarray([1, 3])])


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


DRAWS = 4000


@pytest.mark.parametrize(('config', 'expected'), [
    (SamplingConfig(), PROBS),
    (SamplingConfig(temperature=0.5), PROBS**2 / (PROBS**2).sum()),
    (SamplingConfig(top_k=2), np.array([0, 0.4, 0, 0.3, 0]) / 0.7),
    (SamplingConfig(top_p=0.8), np.array([0, 0.4, 0, 0.3, 0.15]) / 0.85),
])
def test_frequencies(config, expected):
    tokens, _ = draw(jnp.tile(LOGITS, (DRAWS, 1)), keys(DRAWS), config)
    counts = np.bincount(tokens, minlength=len(PROBS))
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = (((counts - DRAWS * expected) ** 2)[possible] / (DRAWS * expected[possible])).sum()
    # The 99.9 % point of the chi-square distribution with 4 degrees of freedom.
    assert chi_square < 18.47


@pytest.mark.parametrize(('config', 'temperature'), [
    (SamplingConfig(), 1.0), (SamplingConfig(temperature=0.7), 0.7),
    (SamplingConfig(temperature=0.7, top_k=2, top_p=0.5), 0.7),
    (SamplingConfig(temperature=0), 1.0)])
def test_log_probs_are_those_before_truncation(config, temperature):
    tokens, logprobs = draw(jnp.tile(LOGITS, (50, 1)), keys(50), config)
    powers = PROBS ** (1 / temperature)
    np.testing.assert_allclose(logprobs, np.log(powers / powers.sum())[tokens], atol=1e-5)
    assert tokens.dtype == jnp.int32 and logprobs.dtype == jnp.float32


def test_greedy_is_the_argmax_whatever_the_key():
    tokens, _ = draw(jnp.tile(LOGITS, (50, 1)), keys(50), SamplingConfig(temperature=0))
    assert set(tokens.tolist()) == {1}


def test_a_rows_token_depends_on_its_own_key_and_logits_only():
    rows = jax.random.normal(jax.random.key(5), (6, 40))
    tokens, logprobs = draw(rows, keys(6), SamplingConfig())
    order = jnp.asarray([3, 0, 5, 1])
    again, log_again = draw(rows[order], keys(6)[order], SamplingConfig())
    np.testing.assert_array_equal(again, tokens[order])
    np.testing.assert_allclose(log_again, logprobs[order], rtol=1e-6)


@pytest.mark.parametrize('values', [
    {'temperature': -0.1}, {'top_k': -1}, {'top_p': 0.0}, {'top_p': 1.1}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SamplingConfig(**values)
