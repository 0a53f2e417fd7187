"""Parity with transformers in torch, float32: goldens made by `make_goldens.py`.

Weights go through a safetensors file in the published layout, so these tests
also cover loading.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models.golden_cases import CASES, GOLDENS, IMAGE_TOKEN, gradient_sample, weights
from vrag_jax.models import hf_checkpoint
from vrag_jax.models.mrope import rope_index
from vrag_jax.models.packing import pack_images
from vrag_jax.models.parameters import flat_params, merge


@functools.cache
def golden(name):
    with np.load(GOLDENS / f'{name}.npz') as file:
        return dict(file)


@pytest.fixture(scope='module', params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope='module')
def model(case, tmp_path_factory):
    """The case's model, loaded from a checkpoint directory."""
    directory = tmp_path_factory.mktemp(case.name)
    (directory / 'config.json').write_text(json.dumps(case.hf_config()))
    shapes = json.loads(str(golden(case.name)['shapes']))
    save_file(weights(case, shapes), directory / 'model.safetensors')
    return hf_checkpoint.load(directory)


@pytest.fixture(scope='module')
def run(case, model):
    """Features, logits, masked loss and gradients by parameter."""
    graphdef, params = flat_params(model)
    tokens, real = case.batch()
    positions = np.zeros((3, *tokens.shape), np.int32)
    for row, (ids, grids) in enumerate(zip(case.row_tokens(), case.rows, strict=True)):
        positions[:, row, : len(ids)], _ = rope_index(ids, grids, model.config)
    is_image = tokens == IMAGE_TOKEN
    index = np.where(is_image, np.cumsum(is_image).reshape(tokens.shape) - 1, -1)
    patches = pack_images(list(zip(case.pixels(), case.grids, strict=True)), model.config)
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

    grads, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    return {**out, 'gradients': grads}


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
