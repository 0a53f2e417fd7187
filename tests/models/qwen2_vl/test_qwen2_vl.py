"""Qwen2-VL: sizes by name, its own fields in and out, and what a run exports of it.

Its numbers are those of transformers by `tests.models.test_parity`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from transformers import Qwen2VLConfig

from tests.models.golden_cases import CASES
from tests.models.test_parity import golden
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.models.families import config_from_hf, family_of, preset, read_config
from vrag_jax.models.qwen2_vl.model import Qwen2VL

CASE = next(case for case in CASES if case.family == 'qwen2_vl' and case.tied)


@pytest.mark.parametrize(('name', 'billions'), [('qwen2_vl_2b', 2.209), ('qwen2_vl_7b', 8.291)])
def test_presets_have_the_published_parameter_counts(name, billions):
    _, shapes = flat_params(nnx.eval_shape(lambda: Qwen2VL(preset(name), rngs=nnx.Rngs(0))))
    assert sum(np.prod(x.shape) for x in shapes.values()) / 1e9 == pytest.approx(
        billions, rel=1e-3)


def test_its_own_fields_are_read_and_written():
    hf = {**CASE.hf_config(), 'vision_config': {
        'model_type': 'qwen2_vl', 'depth': 2, 'embed_dim': 32, 'hidden_size': 64,
        'mlp_ratio': 4, 'num_heads': 2, 'in_chans': 3, 'patch_size': 14,
        'spatial_merge_size': 2, 'spatial_patch_size': 14, 'temporal_patch_size': 2}}
    config = config_from_hf(hf)
    assert family_of(config).model is Qwen2VL
    assert (config.vision.width, config.vision.mlp_width) == (32, 128)
    assert (config.vision.output_width, config.vision.full_layers) == (64, (0, 1))
    assert config_from_hf(json.loads(json.dumps(config.to_hf()))) == config
    theirs = Qwen2VLConfig(**config.to_hf())
    assert config_from_hf(theirs.to_dict()) == config


@pytest.mark.parametrize('name', ['qwen2_vl_2b', 'qwen2_vl_7b'])
def test_a_preset_reads_back_from_its_own_hf_config(name):
    assert config_from_hf(json.loads(json.dumps(preset(name).to_hf()))) == preset(name)


def test_an_activation_that_is_not_its_own_is_refused():
    hf = CASE.hf_config()
    hf['vision_config']['hidden_act'] = 'silu'
    with pytest.raises(ValueError, match="vision_config.hidden_act must be 'quick_gelu'"):
        config_from_hf(hf)


def test_what_is_saved_has_every_tensor_that_transformers_wants_and_no_other(tmp_path):
    config = config_from_hf(CASE.hf_config())
    model = family_of(config).model(config, rngs=nnx.Rngs(0))
    hf_checkpoint.save(model, tmp_path / 'saved')
    # Names and shapes of `Qwen2VLForConditionalGeneration`, as torch has listed them.
    wanted = {name: tuple(shape) for name, shape in
              json.loads(str(golden(CASE.name)['shapes'])).items()}
    with safe_open(tmp_path / 'saved' / 'model.safetensors', 'numpy') as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == wanted
    stored = json.loads((tmp_path / 'saved' / 'config.json').read_text())
    assert stored['architectures'] == ['Qwen2VLForConditionalGeneration']
    assert read_config(tmp_path / 'saved') == config
    again = flat_params(hf_checkpoint.load(tmp_path / 'saved'))[1]
    for path, value in flat_params(model)[1].items():
        np.testing.assert_array_equal(again[path], value)


def test_half_precision_is_near_float32():
    config = config_from_hf(CASE.hf_config())
    tokens = jnp.asarray(np.random.default_rng(0).integers(2, 90, (2, 9)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(9), (3, 2, 9))
    whole, half = (jax.jit(lambda dtype=dtype: (lambda m: m.logits(m.hidden_states(
        tokens, positions)))(Qwen2VL(config, rngs=nnx.Rngs(0), dtype=dtype)))()
        for dtype in (jnp.float32, jnp.bfloat16))
    assert 0 < np.abs(whole - half).max() < 0.1 * np.abs(whole).max()
