"""Schedules, clipping and weight decay against numbers worked out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vrag_jax.learner.optimizer import (
    OptimizerConfig,
    decay_mask,
    learning_rate,
    make_optimizer,
    muon_dimensions,
)
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL


def rates(steps, total, **config):
    schedule = learning_rate(OptimizerConfig(lr=1.0, **config), total)
    return [float(schedule(step)) for step in steps]


def test_the_warm_up_rises_in_equal_steps_from_its_first():
    got = rates(range(7), 100, warmup_steps=5)
    np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8, 1, 1, 1], rtol=1e-6)


def test_a_warm_up_of_one_step_is_none():
    np.testing.assert_allclose(rates(range(3), 10, warmup_steps=1), 1.0)


def test_without_warm_up_the_rate_is_constant():
    np.testing.assert_allclose(rates([0, 1, 50, 1000], 100), 1.0)


def test_the_warm_up_may_be_a_fraction_of_all_steps():
    np.testing.assert_allclose(rates(range(4), 20, warmup_fraction=0.1), [0.5, 1, 1, 1])


def test_steps_take_precedence_over_the_fraction():
    got = rates(range(3), 20, warmup_steps=2, warmup_fraction=0.5)
    np.testing.assert_allclose(got, [0.5, 1, 1])


def test_cosine_decay_by_hand():
    # 2 steps of warm-up, then half a cosine over 18 steps from 1 to 0.1.
    got = rates([2, 2 + 6, 2 + 9, 20, 30], 20, schedule='cosine', warmup_steps=2, end_fraction=0.1)
    third = 0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2
    np.testing.assert_allclose(got, [1, third, 0.55, 0.1, 0.1], rtol=1e-5)


def test_linear_decay_by_hand():
    got = rates([0, 5, 10, 15], 10, schedule='linear', end_fraction=0.2)
    np.testing.assert_allclose(got, [1, 0.6, 0.2, 0.2], rtol=1e-6)


PARAMS = {'mlp/kernel': jnp.asarray([2.0, -4.0]), 'norm/scale': jnp.asarray([3.0])}


def first_update(gradients, **config):
    optimizer = make_optimizer(OptimizerConfig(**{'weight_decay': 0.0} | config), 10)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    return updates


def test_the_first_step_of_adam_is_the_sign_of_the_gradient():
    gradients = {'mlp/kernel': jnp.asarray([0.1, -0.02]), 'norm/scale': jnp.asarray([0.3])}
    got = first_update(gradients, lr=0.01)
    np.testing.assert_allclose(got['mlp/kernel'], [-0.01, 0.01], rtol=1e-4)
    np.testing.assert_allclose(got['norm/scale'], [-0.01], rtol=1e-4)


def test_only_matrices_decay():
    zeros = {name: jnp.zeros_like(value) for name, value in PARAMS.items()}
    got = first_update(zeros, lr=0.1, weight_decay=0.5)
    # -lr * weight_decay * parameter.
    np.testing.assert_allclose(got['mlp/kernel'], [-0.1, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(got['norm/scale'], [0.0])


def test_the_decay_mask_of_the_policy():
    _, params = flat_params(nnx.eval_shape(
        lambda: Qwen2_5_VL(preset('tiny', vocab_size=64), rngs=nnx.Rngs(0))))
    mask = decay_mask(params)
    assert mask['language_model/layers/attention/q_proj/kernel']
    assert mask['language_model/embed_tokens/embedding']
    assert mask['visual/merger/fc1/kernel']
    assert not mask['language_model/layers/attention/q_proj/bias']
    assert not mask['language_model/norm/scale']
    # Stacked norms have two axes, as matrices do: only the name tells.
    assert not mask['language_model/layers/input_layernorm/scale']
    assert {path.rsplit('/', 1)[1] for path, decays in mask.items() if not decays} == {
        'bias', 'scale'}


@pytest.mark.parametrize(('norm', 'factor'), [(5.0, 1 / 5), (0.5, 1.0)])
def test_gradients_are_clipped_to_their_global_norm(norm, factor):
    # With a large eps Adam's first step is g / eps: proportional to the gradient.
    unit = {'mlp/kernel': jnp.asarray([0.6, 0.0]), 'norm/scale': jnp.asarray([-0.8])}
    gradients = {name: value * norm for name, value in unit.items()}
    assert float(optax.global_norm(gradients)) == pytest.approx(norm)
    got = first_update(gradients, lr=1.0, eps=1e6, clip_norm=1.0)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(got[name], -gradient * factor / 1e6, rtol=1e-4)


def test_muon_takes_the_layers_kernels_and_no_other_parameter():
    _, params = flat_params(nnx.eval_shape(
        lambda: Qwen2_5_VL(preset('qwen2_5_vl_7b'), rngs=nnx.Rngs(0))))
    dimensions = muon_dimensions(params)
    # The axis before them counts layers, which are matrices of their own.
    assert dimensions['language_model/layers/mlp/down_proj/kernel'] == (1, 2)
    assert dimensions['visual/patch_embed/kernel'] == (0, 1)
    left_to_adamw = {path for path, numbers in dimensions.items() if numbers is None}
    assert {'lm_head/kernel', 'language_model/embed_tokens/embedding'} <= left_to_adamw
    assert {path.rsplit('/', 1)[1] for path in left_to_adamw - {'lm_head/kernel'}} == {
        'bias', 'scale', 'embedding'}


def test_muon_turns_a_gradient_into_its_nearest_orthogonal_matrix_layer_by_layer():
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(2, 12, 8)).astype(np.float32)
    gradient[1] *= 100  # A layer's step does not depend on another one's gradient.
    params = {'mlp/kernel': jnp.ones((2, 12, 8)), 'norm/scale': jnp.ones(3)}
    gradients = {'mlp/kernel': jnp.asarray(gradient), 'norm/scale': jnp.asarray([0.3, -2, 1e-3])}
    optimizer = make_optimizer(OptimizerConfig(
        algorithm='muon', lr=0.01, weight_decay=0.5, clip_norm=1e9), 10)
    got, _ = optimizer.update(gradients, optimizer.init(params), params)
    # Decay adds -lr * weight_decay * parameter; the scale is sqrt(12) * MUON_RMS.
    update = (np.asarray(got['mlp/kernel']) + 0.005) / (-0.01 * math.sqrt(12) * 0.2)
    for step, of in zip(update, gradient, strict=True):
        u, _, vt = np.linalg.svd(of, full_matrices=False)
        aligned = u.T @ step @ vt.T
        # The iteration brings singular values near 1, not to it.
        assert 0.6 < np.diag(aligned).min() and np.diag(aligned).max() < 1.3
        np.testing.assert_allclose(aligned - np.diag(np.diag(aligned)), 0, atol=1e-3)
    # The first step of Adam with Nesterov's momentum: 1 + b1 / (1 + b1) of the sign of the
    # gradient. Norms do not decay.
    step = 0.01 * (1 + 0.9 / 1.9)
    np.testing.assert_allclose(got['norm/scale'], [-step, step, -step], rtol=1e-3)


@pytest.mark.parametrize('values', [
    {'algorithm': 'sgd'}, {'schedule': 'step'}, {'lr': 0.0}, {'clip_norm': 0.0},
    {'warmup_fraction': 1.0}, {'warmup_steps': -5}, {'weight_decay': -0.1}, {'b1': 2.0},
    {'b2': 1.0}, {'eps': 0.0}, {'end_fraction': 1.5}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        OptimizerConfig(**values)
