"""Parity with transformers in torch, float32: goldens made by `make_goldens.py`.

Weights go through a safetensors file in the published layout, so these tests
also cover loading.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.models.golden_cases import (
    ADAPTED,
    ADAPTER,
    CASES,
    GOLDENS,
    IMAGE_TOKEN,
    gradient_sample,
    weights,
)
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.lora import (
    LoraConfig,
    add_adapters,
    load_adapters,
    merged,
    save_adapters,
)
from vrag_jax.models.common.mrope import rope_index
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.common.patch_packing import pack_images


@functools.cache
def golden(name):
    with np.load(GOLDENS / f'{name}.npz') as file:
        return dict(file)


@pytest.fixture(scope='module', params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


def load(case, directory):
    """The case's model, loaded from a checkpoint directory."""
    (directory / 'config.json').write_text(json.dumps(case.hf_config()))
    shapes = json.loads(str(golden(case.name)['shapes']))
    save_file(weights(case, shapes), directory / 'model.safetensors')
    return hf_checkpoint.load(directory)


@pytest.fixture(scope='module')
def model(case, tmp_path_factory):
    return load(case, tmp_path_factory.mktemp(case.name))


@pytest.fixture(scope='module')
def run(case, model):
    """Features, logits, masked loss and gradients by parameter."""
    graphdef, params = flat_params(model)
    function = forward(case, graphdef, model.config)
    grads, out = jax.jit(jax.grad(function, has_aux=True))(params)
    return {**out, 'gradients': grads}


def forward(case, graphdef, config):
    """Returns `params -> (masked loss, features, logits, positions)` of a case's batch."""
    tokens, real = case.batch()
    positions = np.zeros((3, *tokens.shape), np.int32)
    for row, (ids, grids) in enumerate(zip(case.row_tokens(), case.rows, strict=True)):
        positions[:, row, : len(ids)], _ = rope_index(ids, grids, config)
    is_image = tokens == IMAGE_TOKEN
    index = np.where(is_image, np.cumsum(is_image).reshape(tokens.shape) - 1, -1)
    patches = pack_images(list(zip(case.pixels(), case.grids, strict=True)), config)
    mask = case.loss_mask()

    def loss(params):
        model = merge(graphdef, params)
        features = model.encode_images(patches)
        hidden = model.hidden_states(
            tokens, positions, segment_ids=jnp.asarray(real, jnp.int32),
            image_features=features, image_index=index)
        logits = model.logits(hidden)
        logprobs = jax.nn.log_softmax(logits[:, :-1])
        chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
        value = -(chosen * mask[:, :-1]).sum() / mask.sum()
        return value, dict(features=features, logits=logits[real], positions=positions, loss=value)

    return loss


def test_image_features(case, run):
    expected = golden(case.name)['features']
    got = np.asarray(run['features'])
    np.testing.assert_allclose(got[: len(expected)], expected, atol=1e-4)
    assert not got[len(expected):].any()


def test_position_ids_are_exactly_equal(case, run):
    np.testing.assert_array_equal(run['positions'], golden(case.name)['position_ids'])


def test_logits_within_1e_4(case, run):
    np.testing.assert_allclose(run['logits'], golden(case.name)['logits'], rtol=0, atol=1e-4)


def test_gradient_of_masked_loss_within_1e_3(case, run, model):
    expected = golden(case.name)
    np.testing.assert_allclose(run['loss'], expected['loss'], rtol=1e-5)
    gradients = dict(hf_checkpoint.hf_tensors(run['gradients'].items(), model.config))
    assert gradients.keys() == json.loads(str(expected['shapes'])).keys()
    for name, gradient in gradients.items():
        got, want = gradient_sample(gradient), expected[f'gradient:{name}']
        assert np.linalg.norm(got - want) < 1e-3 * np.linalg.norm(want), name


@pytest.fixture(scope='module', params=ADAPTED)
def folder(request):
    return request.param


@pytest.fixture(scope='module')
def adapted(folder, tmp_path_factory):
    """Model with the adapters that PEFT has saved: graph definition, parameters, config."""
    model = load(ADAPTED[folder], tmp_path_factory.mktemp('adapted'))
    lora = LoraConfig(**ADAPTER)
    add_adapters(model, lora, nnx.Rngs(0))
    graphdef, params = flat_params(model)
    read = load_adapters(GOLDENS / folder, params, lora)
    return graphdef, {**params, **jax.tree.map(jnp.asarray, read)}, lora


def logits_of(case, graphdef, params, config):
    return jax.jit(lambda p: forward(case, graphdef, config)(p)[1]['logits'])(params)


def test_logits_with_adapters_that_peft_has_saved(folder, adapted):
    graphdef, params, _ = adapted
    expected = golden(f'{folder}/logits')['logits']
    got = logits_of(ADAPTED[folder], graphdef, params, merge(graphdef, params).config)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    # Without them they are others.
    assert np.abs(golden(ADAPTED[folder].name)['logits'] - expected).max() > 0.1


def test_a_merged_policy_is_an_ordinary_checkpoint(folder, adapted, tmp_path):
    graphdef, params, lora = adapted
    config = merge(graphdef, params).config
    plain = merged(params, lora)
    hf_checkpoint.save_params(plain.__getitem__, plain, config, tmp_path)
    read = hf_checkpoint.load(tmp_path)
    got = logits_of(ADAPTED[folder], *flat_params(read), config)
    np.testing.assert_allclose(got, golden(f'{folder}/logits')['logits'], rtol=0, atol=1e-4)


def test_adapters_are_saved_under_the_names_of_peft(folder, adapted, tmp_path):
    _, params, lora = adapted
    save_adapters(tmp_path, params, lora, '')
    ours, theirs = (load_file(directory / 'adapter_model.safetensors')
                    for directory in (tmp_path, GOLDENS / folder))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)
    stored, golden_config = (json.loads((directory / 'adapter_config.json').read_text())
                             for directory in (tmp_path, GOLDENS / folder))
    # PEFT's own settings pick the same layers.
    for name in theirs:
        module = name.removeprefix('base_model.model.').rpartition('.lora_')[0]
        for settings in (stored, golden_config):
            assert re.fullmatch(settings['target_modules'], module)
    assert not re.fullmatch(stored['target_modules'], 'model.visual.blocks.0.mlp.down_proj')
