"""Every published variant against numbers worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrag_jax.learner.losses import GrpoLossConfig, grpo_loss
from vrag_jax.learner.variants import ADVANTAGES, AVERAGING, KL_ESTIMATORS, RATIOS
from vrag_jax.registry import Registry

LN2 = math.log(2)


def row(*values):
    return jnp.asarray([values], jnp.float32)


@pytest.mark.parametrize(('name', 'want'), [
    # logp - ref is ln 2, -ln 2 and 0.
    ('k1', [LN2, -LN2, 0.0]),
    ('k2', [LN2**2 / 2, LN2**2 / 2, 0.0]),
    # exp(ref - logp) is 1/2, 2 and 1.
    ('k3', [0.5 + LN2 - 1, 2 - LN2 - 1, 0.0])])
def test_kl_estimates(name, want):
    got = KL_ESTIMATORS[name](jnp.zeros(3), jnp.asarray([-LN2, LN2, 0.0]))
    np.testing.assert_allclose(got, want, atol=1e-6)
    far = KL_ESTIMATORS[name](jnp.zeros(2), jnp.asarray([-300.0, 300.0]))
    assert np.isfinite(far).all() and np.abs(far).max() == 10.0


def test_what_the_estimates_are_of():
    """Over a policy's own samples, k1 and k3 have the KL as mean; k2's gradient is its."""
    logits, ref = jnp.asarray([0.3, -0.2, 1.0]), jax.nn.log_softmax(jnp.asarray([0.1, 0.4, 0.5]))

    def exact(logits):
        log_p = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - ref))

    def expected(logits, name):
        log_p = jax.nn.log_softmax(logits)
        p = jax.lax.stop_gradient(jnp.exp(log_p))
        return jnp.sum(p * KL_ESTIMATORS[name](log_p, ref))

    for name in ('k1', 'k3'):
        assert float(expected(logits, name)) == pytest.approx(float(exact(logits)), abs=1e-6)
    want = jax.grad(exact)(logits)
    np.testing.assert_allclose(jax.grad(expected)(logits, 'k2'), want, atol=1e-6)
    np.testing.assert_allclose(jax.grad(expected)(logits, 'k1'), 0.0, atol=1e-6)


@pytest.mark.parametrize(('name', 'want'), [
    # Mean 1/2, unbiased deviation sqrt((4 * 1/4) / 3) = sqrt(1/3).
    ('group_normalised', [0.5 * 3**0.5, -0.5 * 3**0.5, 0.5 * 3**0.5, -0.5 * 3**0.5]),
    ('group_mean', [0.5, -0.5, 0.5, -0.5]),
    # The mean of the three others is 1/3 or 2/3.
    ('leave_one_out', [2 / 3, -2 / 3, 2 / 3, -2 / 3])])
def test_advantages(name, want):
    got = ADVANTAGES[name](np.array([[1.0, 0, 1, 0], [3, 3, 3, 3]]))
    np.testing.assert_allclose(got, [want, [0, 0, 0, 0]], rtol=1e-5)
    assert got.dtype == np.float32
    with pytest.raises(ValueError, match='group_size >= 2'):
        ADVANTAGES[name](np.zeros((3, 1)))


@pytest.mark.parametrize(('name', 'weights', 'total'), [
    ('token', [1, 1, 1], 6), ('sequence', [1 / 4, 1 / 2, 1], 2), ('constant', [1, 1, 1], 300)])
def test_averaging(name, weights, total):
    # The last sequence has no trained token.
    got = AVERAGING[name](np.array([4, 2, 0]), 100)
    np.testing.assert_allclose(got[0], weights)
    assert got[1] == total


SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]], np.int32)
TRAINED = np.array([[1, 0, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]], bool)


def test_the_ratio_of_a_sequence():
    log_ratio = jnp.asarray([[0.2, 9.0, 0.4, -0.1, 0.3, 9.0], [0.5, 0.6, 9.0, 0.3, 0.0, -0.6]])
    got = RATIOS['sequence'](log_ratio, jnp.asarray(TRAINED), jnp.asarray(SEGMENTS))
    # (0.2 + 0.4) / 2, (-0.1 + 0.3) / 2; 0.5, 0.6, (0.3 + 0 - 0.6) / 3.
    np.testing.assert_allclose(
        np.where(TRAINED, got, 0), [[0.3, 0, 0.3, 0.1, 0.1, 0], [0.5, 0.6, 0, -0.1, -0.1, -0.1]],
        atol=1e-6)
    np.testing.assert_array_equal(
        RATIOS['token'](log_ratio, jnp.asarray(TRAINED), jnp.asarray(SEGMENTS)), log_ratio)


def sequence_loss(logprobs, old, advantages, low, high):
    """GSPO's objective of one sequence: eq. 5 of arXiv 2507.18071, with its sign."""
    s = jnp.exp(jnp.mean(logprobs - old))
    return -jnp.minimum(s * advantages, jnp.clip(s, 1 - low, 1 + high) * advantages)


def test_gspo_packed_is_gspo_of_each_sequence():
    rng = np.random.default_rng(0)
    logprobs = jnp.asarray(rng.uniform(-2, 0, SEGMENTS.shape), jnp.float32)
    old = logprobs + jnp.asarray(rng.normal(0, 0.4, SEGMENTS.shape), jnp.float32)
    by_segment = rng.normal(size=(2, 4)).astype(np.float32)
    advantages = np.take_along_axis(by_segment, SEGMENTS, axis=1)
    config = GrpoLossConfig(ratio='sequence', averaging='sequence', kl_coef=0.0, clip_low=0.1,
                            clip_high=0.15)
    places = [(r, np.flatnonzero((SEGMENTS[r] == s) & TRAINED[r]))
              for r in range(2) for s in range(1, 4) if (SEGMENTS[r] == s).any()]
    weights = np.zeros(SEGMENTS.shape, np.float32)
    for r, columns in places:
        weights[r, columns] = 1 / len(columns)

    def packed(logprobs):
        return grpo_loss(logprobs, old, logprobs, advantages, weights, float(len(places)), config,
                         segment_ids=SEGMENTS, tokens=float(TRAINED.sum()))[0]

    def one_by_one(logprobs):
        return sum(sequence_loss(logprobs[r, c], old[r, c], advantages[r, c[0]], 0.1, 0.15)
                   for r, c in places) / len(places)

    got, want = jax.value_and_grad(packed)(logprobs), jax.value_and_grad(one_by_one)(logprobs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    assert np.any(want[1]) and not np.all(want[1][TRAINED])  # Some are clipped, some not.


def test_ratios_of_sequences_need_to_know_them():
    with pytest.raises(ValueError, match='segment_ids'):
        grpo_loss(*[row(-1.0)] * 4, row(1.0), 1.0, GrpoLossConfig(ratio='sequence'))


def test_clip_higher_leaves_more_room_upwards():
    # A = 1, bounds 0.8 and 1.28: ratios 1.25 and 1.3 give 1.25 and 1.28.
    old = row(-1.0, -1.0)
    loss, metrics = grpo_loss(old + jnp.log(row(1.25, 1.3)), old, old, row(1.0, 1.0),
                              row(1.0, 1.0), 2.0,
                              GrpoLossConfig(clip_low=0.2, clip_high=0.28, kl_coef=0.0))
    assert float(loss) == pytest.approx(-(1.25 + 1.28) / 2, abs=1e-6)
    assert float(metrics['clip_fraction']) == 0.5


def test_truncated_importance_weights():
    # The learner's old probability is 1/2, 1 and 3 times the sampler's, the cap is 2:
    # weights 1/2, 1 and 2. Ratios to the old policy are 1, advantages 1, -1, 2.
    old = row(-1.0, -1.0, -1.0)
    sampler = old - jnp.log(row(0.5, 1.0, 3.0))
    config = GrpoLossConfig(importance_cap=2.0, kl_coef=0.0)

    def loss(logprobs, **more):
        return grpo_loss(logprobs, old, logprobs, row(1.0, -1.0, 2.0), jnp.ones((1, 3)), 3.0,
                         config, sampler_logprobs=sampler, **more)

    value, metrics = loss(old)
    assert float(value) == pytest.approx(-(0.5 - 1 + 2 * 2) / 3, abs=1e-6)
    assert float(metrics['importance']) == pytest.approx((0.5 + 1 + 3) / 3, abs=1e-6)
    # The weights have no gradient of their own.
    gradient = jax.grad(lambda x: loss(x)[0])(old)
    np.testing.assert_allclose(gradient, [[-0.5 / 3, 1 / 3, -4 / 3]], atol=1e-6)
    # With one update the current policy is the old one: the same values and gradients.
    again = jax.value_and_grad(lambda x: loss(x, old_is_current=True)[0])(old)
    assert float(again[0]) == pytest.approx(float(value), abs=1e-6)
    np.testing.assert_allclose(again[1], gradient, atol=1e-6)


def test_drift_by_hand():
    logprobs = row(-1.0, -2.0, -3.0, -4.0)
    sampler = row(-1.005, -2.0, -3.2, math.nan)
    weights = row(1.0, 1.0, 1.0, 0.0)
    _, metrics = grpo_loss(logprobs, logprobs, logprobs, row(0, 0, 0, 0), weights, 3.0,
                           GrpoLossConfig(), sampler_logprobs=sampler)
    assert float(metrics['drift_mean']) == pytest.approx((0.005 + 0.2) / 3, abs=1e-6)
    assert float(metrics['drift_max']) == pytest.approx(0.2, abs=1e-6)
    assert float(metrics['drift_share']) == pytest.approx(1 / 3)


@pytest.mark.parametrize(('field', 'known'), [
    ('kl', 'k1'), ('ratio', 'sequence'), ('averaging', 'constant')])
def test_unknown_names_are_refused_and_known_ones_listed(field, known):
    with pytest.raises(ValueError, match=f"{field} must be one of .*'{known}'.*got 'k9'"):
        GrpoLossConfig(**{field: 'k9'})


def test_a_variant_of_ones_own(monkeypatch):
    registry = Registry('kl')
    registry.update(KL_ESTIMATORS)

    @registry.add('absolute')
    def absolute(logprobs, ref_logprobs):
        return jnp.abs(logprobs - ref_logprobs)

    with pytest.raises(ValueError, match="kl: 'absolute' is taken"):
        registry.add('absolute')(absolute)
    monkeypatch.setattr('vrag_jax.learner.losses.KL_ESTIMATORS', registry)
    loss, _ = grpo_loss(row(-1.0), row(-1.0), row(-3.0), row(0.0), row(1.0), 1.0,
                        GrpoLossConfig(kl='absolute', kl_coef=0.5))
    assert float(loss) == pytest.approx(1.0)
