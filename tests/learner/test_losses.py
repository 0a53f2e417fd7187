"""SFT and GRPO losses against numbers worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrag_jax.learner.losses import GrpoLossConfig, grpo_loss, sft_loss
from vrag_jax.learner.variants import k3

GARBAGE = (math.inf, -math.inf, math.nan, 1e30)


def row(*values):
    return jnp.asarray([values], jnp.float32)


def grpo(ratios, advantages, *, ref=None, weights=None, total=None, entropies=None, **config):
    """Loss and metrics of tokens whose old log-prob is -1 and ratio is given."""
    logprobs = jnp.log(row(*ratios)) - 1.0
    weights = row(*[1.0] * len(ratios)) if weights is None else row(*weights)
    total = float(weights.sum()) if total is None else total
    ref = logprobs if ref is None else row(*ref)
    return grpo_loss(
        logprobs, jnp.full_like(logprobs, -1.0), ref, row(*advantages), weights, total,
        GrpoLossConfig(**config), entropies)


def test_k3_by_hand():
    # exp(d) - d - 1 with d = ref - logp = ln 2, -ln 2, 0.
    ln2 = math.log(2)
    got = k3(jnp.zeros(3), jnp.asarray([ln2, -ln2, 0.0]))
    np.testing.assert_allclose(got, [1 - ln2, ln2 - 0.5, 0.0], atol=1e-6)


def test_k3_is_clamped_and_its_gradient_stays_finite():
    # e^4 = 54.6 is past the limit of 10; e^200 does not even exist in float32.
    logprobs = jnp.asarray([-5.0, -201.0])
    ref = jnp.asarray([-1.0, -1.0])
    np.testing.assert_allclose(k3(logprobs, ref), [10.0, 10.0])
    gradient = jax.grad(lambda x: k3(x, ref).sum())(logprobs)
    np.testing.assert_allclose(gradient, [0.0, 0.0])


def test_the_clip_has_a_lower_and_an_upper_bound():
    # Bounds 0.8 and 1.3:
    #   A = +1, ratio 1.5: -min(1.5, 1.3) = -1.3, clipped
    #   A = +1, ratio 0.5: -min(0.5, 0.8) = -0.5
    #   A = -1, ratio 0.5: -min(-0.5, -0.8) = 0.8, clipped
    #   A = -1, ratio 1.5: -min(-1.5, -1.3) = 1.5
    loss, metrics = grpo(
        (1.5, 0.5, 0.5, 1.5), (1, 1, -1, -1), clip_low=0.2, clip_high=0.3, kl_coef=0.0)
    assert float(loss) == pytest.approx((-1.3 - 0.5 + 0.8 + 1.5) / 4, abs=1e-6)
    assert float(metrics['policy_loss']) == pytest.approx(0.125, abs=1e-6)
    assert float(metrics['clip_fraction']) == pytest.approx(0.5)
    assert float(metrics['ratio']) == pytest.approx(1.0, abs=1e-6)


def test_the_gradient_of_clipped_tokens_is_zero():
    advantages, weights = row(1, 1, -1, -1), jnp.ones((1, 4))
    old = jnp.full((1, 4), -1.0)

    def loss(logprobs):
        config = GrpoLossConfig(clip_low=0.2, clip_high=0.3, kl_coef=0.0)
        return grpo_loss(logprobs, old, logprobs, advantages, weights, 4.0, config)[0]

    gradient = jax.grad(loss)(jnp.log(row(1.5, 0.5, 0.5, 1.5)) - 1.0)
    # d(-ratio * A)/d logp = -ratio * A, over 4 tokens.
    np.testing.assert_allclose(gradient, row(0.0, -0.5 / 4, 0.0, 1.5 / 4), atol=1e-6)


def test_on_policy_the_gradient_is_that_of_reinforce():
    logprobs, advantages = row(-1.0, -2.0, -0.5), row(2.0, -1.0, 0.5)

    def loss(x):
        return grpo_loss(x, logprobs, logprobs, advantages, jnp.ones((1, 3)), 3.0,
                         GrpoLossConfig())[0]

    np.testing.assert_allclose(jax.grad(loss)(logprobs), -advantages / 3, atol=1e-6)


def test_the_kl_term_by_hand():
    # ratio 1, A = 0; ref - logp = ln 2 and 0: k3 = 1 - ln 2 and 0.
    loss, metrics = grpo((1.0, 1.0), (0.0, 0.0), ref=(-1 + math.log(2), -1.0), kl_coef=0.01)
    kl = (1 - math.log(2)) / 2
    assert float(metrics['kl']) == pytest.approx(kl, abs=1e-6)
    assert float(loss) == pytest.approx(0.01 * kl, abs=1e-7)


def test_without_a_kl_term_none_is_reported():
    _, metrics = grpo((1.0, 1.0), (1.0, 0.0), ref=(9.0, float('nan')), kl_coef=0.0)
    assert 'kl' not in metrics and math.isfinite(metrics['loss'])


def test_the_entropy_bonus_by_hand():
    loss, metrics = grpo((1.0, 1.0), (1.0, 0.0), entropies=row(3.0, 1.0), entropy_coef=0.1)
    assert float(metrics['entropy']) == pytest.approx(2.0)
    assert float(loss) == pytest.approx(-0.5 - 0.1 * 2.0, abs=1e-6)


def test_the_mean_is_over_tokens_not_over_sequences():
    # Row 1 trains three tokens, row 2 one: the long row counts three times.
    ones = jnp.ones((2, 3))
    weights = jnp.asarray([[1.0, 1, 1], [1, 0, 0]])
    advantages = jnp.asarray([[1.0, 1, 1], [-1, -1, -1]])
    loss, _ = grpo_loss(-ones, -ones, -ones, advantages, weights, 4.0, GrpoLossConfig())
    assert float(loss) == pytest.approx((-3 + 1) / 4)


def test_sft_loss_by_hand():
    loss, metrics = sft_loss(row(-1.0, -2.0, -3.0), row(1.0, 0.0, 1.0), 2.0)
    assert float(loss) == float(metrics['loss']) == pytest.approx(2.0)


def test_losses_of_parts_add_up_to_the_loss_of_the_whole():
    logprobs = np.random.default_rng(0).uniform(-3, 0, (4, 6)).astype(np.float32)
    old, ref, weights = logprobs - 0.3, logprobs + 0.2, (logprobs > -2).astype(np.float32)
    advantages, total = np.sin(logprobs * 9), float(weights.sum())

    def parts(rows):
        arrays = (x[rows] for x in (logprobs, old, ref, advantages, weights))
        return grpo_loss(*arrays, total, GrpoLossConfig())[1]

    whole, first, second = parts(slice(None)), parts(slice(0, 1)), parts(slice(1, 4))
    for name, value in whole.items():
        assert float(first[name] + second[name]) == pytest.approx(float(value), abs=1e-6), name


@pytest.mark.parametrize('garbage', GARBAGE)
def test_what_stands_on_tokens_that_are_not_trained_on_does_not_matter(garbage):
    weights, advantages = row(1.0, 0.0, 1.0), row(1.0, garbage, -1.0)
    clean = row(-1.0, -1.0, -2.0)
    dirty = row(-1.0, garbage, -2.0)

    def loss(logprobs, old, ref, advantages, entropies):
        config = GrpoLossConfig(entropy_coef=0.1)
        return grpo_loss(logprobs, old, ref, advantages, weights, 2.0, config, entropies)

    want, _ = loss(clean, clean - 0.1, clean + 0.1, row(1.0, 0.0, -1.0), clean)
    (got, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
        dirty, dirty - 0.1, dirty + 0.1, advantages, dirty)
    assert float(got) == pytest.approx(float(want), abs=1e-6)
    assert all(np.isfinite(value) for value in metrics.values())
    assert gradient[0, 1] == 0.0 and np.isfinite(gradient).all()

    supervised, gradient = jax.value_and_grad(lambda x: sft_loss(x, weights, 2.0)[0])(dirty)
    assert float(supervised) == pytest.approx(1.5)
    np.testing.assert_array_equal(gradient, row(-0.5, 0.0, -0.5))


@pytest.mark.parametrize('advantage', [1.0, -1.0])
def test_a_ratio_past_float32_gives_no_nan(advantage):
    logprobs, old = row(-1.0), row(-201.0)

    def loss(x):
        return grpo_loss(x, old, x, row(advantage), row(1.0), 1.0, GrpoLossConfig())[0]

    value, gradient = jax.value_and_grad(loss)(logprobs)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(('field', 'value'), [
    ('clip_low', 0.0), ('clip_low', 1.1), ('clip_high', 0.0), ('kl_coef', -0.1),
    ('dual_clip', 1.0)])
def test_impossible_coefficients_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        GrpoLossConfig(**{field: value})
