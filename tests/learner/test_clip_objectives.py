"""Clip objectives against twins in NumPy, their gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.learner import unclipped  # noqa: F401 (registers an objective)
from vrag_jax.config import ConfigError, parse
from vrag_jax.learner.losses import GrpoLossConfig, grpo_loss
from vrag_jax.run.run_config import RunConfig

LOW, HIGH, C = 0.2, 0.3, 1.6
OLD = -1.0
# On both sides of every bound (0.8, 1.3 and 1.6), with either sign.
RATIOS = np.array([0.5, 0.9, 1.0, 1.2, 1.5, 1.55, 2.5, 9.0] * 2)
ADVANTAGES = np.repeat([1.5, -0.7], 8)
LOGPROBS = np.log(RATIOS) + OLD


def ppo(x, at):
    ratio = np.exp(x - OLD)
    return -np.minimum(ratio * ADVANTAGES, np.clip(ratio, 1 - LOW, 1 + HIGH) * ADVANTAGES)


def dual_clip(x, at):
    kept = -ppo(x, at)
    return -np.where(ADVANTAGES < 0, np.maximum(kept, C * ADVANTAGES), kept)


def cispo(x, at):
    # The weight stays what it is at the point where the gradient is taken.
    weight = np.clip(np.exp(at - OLD), 1 - LOW, 1 + HIGH)
    return -weight * ADVANTAGES * x


OUTSIDE = (RATIOS < 1 - LOW) | (RATIOS > 1 + HIGH)
BY_PPO = ((RATIOS > 1 + HIGH) & (ADVANTAGES > 0)) | ((RATIOS < 1 - LOW) & (ADVANTAGES < 0))
CASES = {'ppo': (ppo, BY_PPO), 'cispo': (cispo, OUTSIDE),
         'dual_clip': (dual_clip, BY_PPO | ((RATIOS > C) & (ADVANTAGES < 0)))}


def losses(objective, x, **config):
    """Losses of tokens, their metrics: each is a sequence of one row."""
    row = lambda values: jnp.asarray(values, jnp.float32)[None]  # noqa: E731
    config = {'clip_low': LOW, 'clip_high': HIGH, 'dual_clip': C, 'kl_coef': 0.0, **config}
    ones = np.ones(len(x))
    return grpo_loss(x[None], row(OLD * ones), x[None], row(ADVANTAGES), row(ones), 1.0,
                     GrpoLossConfig(objective=objective, **config), tokens=float(len(x)))


@pytest.mark.parametrize('name', CASES)
def test_values_gradients_and_what_is_clipped(name):
    twin, clipped = CASES[name]
    x = jnp.asarray(LOGPROBS, jnp.float32)
    (loss, metrics), gradient = jax.value_and_grad(
        lambda x: losses(name, x), has_aux=True)(x)
    assert float(loss) == pytest.approx(twin(LOGPROBS, LOGPROBS).sum(), rel=1e-5)
    step = 1e-6
    want = (twin(LOGPROBS + step, LOGPROBS) - twin(LOGPROBS - step, LOGPROBS)) / (2 * step)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-5)
    assert float(metrics['clip_fraction']) == pytest.approx(clipped.mean())


def test_they_differ_where_they_are_said_to():
    gradient = {name: jax.grad(lambda x, name=name: losses(name, x)[0])(
        jnp.asarray(LOGPROBS, jnp.float32)) for name in CASES}
    far = (RATIOS > C) & (ADVANTAGES < 0)
    np.testing.assert_array_equal(gradient['dual_clip'][far], 0.0)
    assert (np.abs(gradient['ppo'][far]) > C * 0.7).all()
    np.testing.assert_allclose(gradient['dual_clip'][~far], gradient['ppo'][~far])
    assert (gradient['cispo'] != 0).all() and (gradient['ppo'][BY_PPO] == 0).all()


def test_on_policy_all_have_the_gradient_of_reinforce():
    x = jnp.full(16, OLD)
    for name in CASES:
        gradient = jax.grad(lambda x, name=name: losses(name, x)[0])(x)
        np.testing.assert_allclose(gradient, -ADVANTAGES, rtol=1e-6)


def test_without_a_lower_bound_a_small_weight_stays_small():
    x = jnp.asarray(LOGPROBS, jnp.float32)
    gradient = jax.grad(lambda x: losses('cispo', x, clip_low=1.0)[0])(x)
    want = -np.minimum(RATIOS, 1 + HIGH) * ADVANTAGES
    np.testing.assert_allclose(gradient, want, rtol=1e-5)


@pytest.mark.parametrize('name', CASES)
def test_what_stands_on_other_tokens_does_not_matter(name):
    dirty = jnp.asarray([[-1.0, np.nan, np.inf]])
    weights = jnp.asarray([[1.0, 0.0, 0.0]])

    def loss(x):
        return grpo_loss(x, dirty, dirty, dirty * -1, weights, 1.0,
                         GrpoLossConfig(objective=name))[0]

    value, gradient = jax.value_and_grad(loss)(dirty)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_an_objective_from_outside_is_named_in_a_config():
    grpo = {'loss': {'objective': 'unclipped', 'kl_coef': 0.0}}
    config = parse(RunConfig, {'task': 'grpo', 'grpo': grpo}).grpo.loss
    x = jnp.asarray([[0.7, -0.2]]) + OLD
    loss, metrics = grpo_loss(
        x, jnp.full((1, 2), OLD), x, jnp.asarray([[1.0, -3.0]]), jnp.ones((1, 2)), 2.0, config)
    assert float(loss) == pytest.approx(-(np.exp(0.7) - 3 * np.exp(-0.2)) / 2)
    assert float(metrics['clip_fraction']) == 0.0


def test_one_that_nobody_registered_is_refused():
    message = ("^config.grpo.loss: objective must be one of "
               r"\['cispo', 'dual_clip', 'ppo', 'unclipped'\], got 'trpo'")
    with pytest.raises(ConfigError, match=message):
        parse(RunConfig, {'task': 'grpo', 'grpo': {'loss': {'objective': 'trpo'}}})
