"""Adapters: where they are, what they compute, what is trained, saved and merged."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vrag_jax.learner.train_state import partition
from vrag_jax.models.common.lora import (
    LoraConfig,
    add_adapters,
    is_adapter,
    load_adapters,
    merged,
    save_adapters,
)
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL

CONFIG = preset('tiny', vocab_size=64)
LORA = LoraConfig(rank=4, alpha=6.0, dropout=0.25, targets=('q_proj', 'down_proj'))
TOKENS = jnp.asarray([[5, 9, 11, 40, 2, 2, 7]])
POSITIONS = jnp.broadcast_to(jnp.arange(7), (3, 1, 7))


def build(lora):
    model = Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0))
    add_adapters(model, lora, nnx.Rngs(1))
    return flat_params(model)


@pytest.fixture(scope='module')
def base():
    return build(LoraConfig())


@pytest.fixture(scope='module')
def adapted():
    """A policy whose adapters have been trained: no matrix is zero."""
    graphdef, params = build(LORA)
    keys = iter(jax.random.split(jax.random.key(2), len(params)))
    return graphdef, {path: jax.random.normal(next(keys), value.shape) * 0.1
                      if path.endswith('lora_b') else value for path, value in params.items()}


def hidden(policy, dropout_key=None):
    graphdef, params = policy
    run = jax.jit(lambda p: merge(graphdef, p).hidden_states(
        TOKENS, POSITIONS, dropout_key=dropout_key))
    return np.asarray(run(params))


def test_new_adapters_change_nothing(base):
    np.testing.assert_array_equal(hidden(build(LORA)), hidden(base))


def test_adapters_are_where_they_are_asked_for(base):
    params = build(LORA)[1]
    added = {path: value.shape for path, value in params.items() if path not in base[1]}
    layers, size, wide = 3, 128, 384
    prefix = 'language_model/layers'
    assert added == {
        f'{prefix}/attention/q_proj/lora_a': (layers, size, 4),
        f'{prefix}/attention/q_proj/lora_b': (layers, 4, size),
        f'{prefix}/mlp/down_proj/lora_a': (layers, wide, 4),
        f'{prefix}/mlp/down_proj/lora_b': (layers, 4, size)}
    for path, value in base[1].items():
        np.testing.assert_array_equal(params[path], value)


def test_merged_weights_compute_the_same(adapted, base):
    plain = merged(adapted[1], LORA)
    assert plain.keys() == base[1].keys()
    np.testing.assert_allclose(hidden((base[0], plain)), hidden(adapted), atol=2e-5)
    assert np.abs(hidden(adapted) - hidden(base)).max() > 0.1
    # By hand, one layer of one kernel.
    path = 'language_model/layers/attention/q_proj'
    want = adapted[1][f'{path}/kernel'][1] + 6.0 / 4 * (
        adapted[1][f'{path}/lora_a'][1] @ adapted[1][f'{path}/lora_b'][1])
    np.testing.assert_allclose(plain[f'{path}/kernel'][1], want, atol=1e-6)


def test_dropout_is_drawn_anew_with_each_key_and_only_then(adapted):
    first, second = (hidden(adapted, jax.random.key(n)) for n in (0, 1))
    np.testing.assert_array_equal(first, hidden(adapted, jax.random.key(0)))
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - hidden(adapted)).max() > 1e-3


def test_dropout_keeps_the_mean():
    # With one layer's adapter alone, and what follows it linear, means are equal: the
    # adapter itself is looked at.
    from vrag_jax.models.common.layers import Linear

    layer = Linear(64, 3, rngs=nnx.Rngs(0))
    layer.lora_a, layer.lora_b = (
        nnx.Param(jax.random.normal(jax.random.key(n), shape))
        for n, shape in enumerate(((64, 4), (4, 3))))
    layer.lora_scale, layer.lora_dropout = 0.5, 0.25
    x = jax.random.normal(jax.random.key(3), (2, 64))
    exact = layer(x)
    layer.dropout_key = jax.random.key(4)
    many = layer(jnp.broadcast_to(x[:, None], (2, 20000, 64)))
    np.testing.assert_allclose(many.mean(1), exact, atol=4 * many.std() / np.sqrt(20000))


def test_only_adapters_are_trained(adapted):
    trainable, frozen = partition(adapted[1], '^visual/')
    assert set(trainable) == {path for path in adapted[1] if is_adapter(path)}
    assert set(trainable) | set(frozen) == set(adapted[1])
    with pytest.raises(ValueError, match='matches all adapters'):
        partition(adapted[1], 'language_model')


def test_adapters_are_saved_alone_and_come_back(adapted, tmp_path):
    save_adapters(tmp_path, adapted[1], LORA, 'some/base')
    shapes = jax.eval_shape(lambda: adapted[1])
    read = load_adapters(tmp_path, shapes, LORA)
    assert set(read) == {path for path in adapted[1] if is_adapter(path)}
    for path, value in read.items():
        np.testing.assert_array_equal(value, adapted[1][path])
    stored = json.loads((tmp_path / 'adapter_config.json').read_text())
    assert stored['r'] == 4 and stored['lora_alpha'] == 6.0
    assert stored['base_model_name_or_path'] == 'some/base'


def test_adapters_that_do_not_fit_are_refused(adapted, tmp_path):
    shapes = jax.eval_shape(lambda: adapted[1])
    with pytest.raises(FileNotFoundError, match='adapter_model.safetensors: no such file'):
        load_adapters(tmp_path, shapes, LORA)
    (tmp_path / 'adapter_model.bin').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match=r'adapter_model\.bin, which is not read; convert'):
        load_adapters(tmp_path, shapes, LORA)
    save_adapters(tmp_path, adapted[1], LORA, '')
    with pytest.raises(ValueError, match='adapter_config.json: rank and alpha are'):
        load_adapters(tmp_path, shapes, dataclasses.replace(LORA, alpha=7.0))
    fewer = {path: leaf for path, leaf in shapes.items() if 'down_proj' not in path}
    with pytest.raises(ValueError, match='6 tensors do not belong to this policy'):
        load_adapters(tmp_path, fewer, LORA)
    weights = tmp_path / 'adapter_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match='truncated or not safetensors'):
        load_adapters(tmp_path, shapes, LORA)


@pytest.mark.parametrize(('settings', 'message'), [
    ({'rank': -1}, 'rank must not be negative'), ({'rank': 2, 'dropout': 1.0}, 'dropout in'),
    ({'rank': 2, 'targets': ('head',)}, 'targets must be some of')])
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)
