"""Sizes: presets against the published parameter counts, HF configs in and out."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig

from tests.models.config_cases import SAVED
from tests.models.golden_cases import CASES as ALL_CASES
from vrag_jax.embedders.colqwen import find_checkpoint
from vrag_jax.models.common.config import ModelConfig, TextConfig, YarnConfig
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.models.families import config_from_hf, preset, read_config
from vrag_jax.models.qwen2_5_vl.config import Qwen25VisionConfig
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.models.qwen2_vl.config import Qwen2VisionConfig

CASES = [case for case in ALL_CASES if case.family == 'qwen2_5_vl']
PUBLISHED = ('qwen2_5_vl_3b', 'qwen2_5_vl_7b', 'qwen2_5_vl_32b', 'qwen2_5_vl_72b')


def parameter_count(config):
    """Counts parameters without allocating any."""
    _, shapes = flat_params(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))))
    return sum(int(np.prod(leaf.shape)) for leaf in shapes.values())


@pytest.mark.parametrize(('name', 'billions'), zip(PUBLISHED, (3.755, 8.292, 33.45, 73.41),
                                                   strict=True))
def test_presets_have_the_published_parameter_counts(name, billions):
    assert parameter_count(preset(name)) / 1e9 == pytest.approx(billions, rel=1e-3)


def test_the_vision_tower_counts_as_worked_out_by_hand():
    config = preset('tiny', vocab_size=400)
    _, shapes = flat_params(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))))
    count = sum(int(np.prod(v.shape)) for k, v in shapes.items() if k.startswith('visual/'))
    block = (128 * 384 + 384) + (128 * 128 + 128) + 2 * (128 * 256 + 256) + (256 * 128 + 128)
    merger = 128 + (512 * 512 + 512) + (512 * 128 + 128)
    assert count == 3 * 2 * 14 * 14 * 128 + 2 * (block + 2 * 128) + merger


def test_a_preset_reads_back_from_its_own_hf_config():
    for name in PUBLISHED:
        assert config_from_hf(json.loads(json.dumps(preset(name).to_hf()))) == preset(name)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_transformers_reads_the_written_config_as_the_same_sizes(case):
    ours = config_from_hf(case.hf_config())
    theirs = Qwen2_5_VLConfig(**ours.to_hf())
    assert config_from_hf(theirs.to_dict()) == ours
    assert theirs.text_config.rope_parameters['rope_theta'] == ours.text.rope_theta
    assert theirs.tie_word_embeddings == case.tied


# Of `config_cases.CASES`, whose configs versions of transformers have saved.
_2B = ModelConfig(
    Qwen2VisionConfig(hidden_size=1536),
    TextConfig(vocab_size=151936, hidden_size=1536, intermediate_size=8960,
               num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=32768,
               tie_word_embeddings=True))
SIZES = {
    'qwen2_5_vl_7b': preset('qwen2_5_vl_7b'), 'qwen2_vl_2b': _2B, 'colqwen2': _2B,
    'default_text': ModelConfig(
        Qwen25VisionConfig(hidden_size=3584, out_hidden_size=8192, tokens_per_second=4),
        TextConfig(hidden_size=8192, intermediate_size=29568, num_hidden_layers=80,
                   num_attention_heads=64, num_key_value_heads=8, rms_norm_eps=1e-5,
                   max_position_embeddings=32768)),
}
SAVED_CONFIGS = [(version, name, config) for version, configs in
                 json.loads(SAVED.read_text()).items() for name, config in configs.items()]


def test_the_goldens_have_a_version_that_strips_the_vision_config_and_a_nested_one():
    saved = json.loads(SAVED.read_text())
    assert 'depth' not in saved['4.49.0']['qwen2_5_vl_7b']['vision_config']
    assert 'hidden_size' not in saved['5.24.0']['qwen2_5_vl_7b']


@pytest.mark.parametrize(('version', 'name', 'config'), SAVED_CONFIGS,
                         ids=[f'{version}-{name}' for version, name, _ in SAVED_CONFIGS])
def test_configs_of_any_version_are_read_as_the_sizes_given_to_it(tmp_path, version, name, config):
    (tmp_path / 'config.json').write_text(json.dumps(config))
    if name == 'colqwen2':
        assert find_checkpoint(tmp_path, projected=True).config == SIZES[name]
    else:
        assert read_config(tmp_path) == SIZES[name]


def test_a_config_that_names_no_size_has_those_of_the_class():
    stated = {'model_type': 'qwen2_5_vl', 'vision_config': {'out_hidden_size': 8192}}
    theirs = Qwen2_5_VLConfig(vision_config={'out_hidden_size': 8192}).to_dict()
    assert config_from_hf(stated) == config_from_hf(theirs) == SIZES['default_text']
    stated = {'model_type': 'qwen2_vl', 'vision_config': {'hidden_size': 8192}}
    theirs = Qwen2VLConfig(vision_config={'hidden_size': 8192}).to_dict()
    assert config_from_hf(stated) == config_from_hf(theirs)


def test_a_colqwen2_that_leaves_out_its_backbone_has_the_classs(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({
        'model_type': 'colqwen2', 'vlm_config': {'vision_config': {'hidden_size': 8192}}}))
    config = find_checkpoint(tmp_path, projected=True).config
    assert (config.vision.width, config.vision.mlp_width) == (1280, 5120)
    assert config.text == SIZES['default_text'].text


def test_null_key_value_heads_are_one_for_each_head_as_in_transformers():
    hf = {**CASES[1].hf_config(), 'num_key_value_heads': None}
    assert config_from_hf(hf).text.num_key_value_heads == 4


def test_full_attention_beyond_the_last_layer_of_the_tower_is_none():
    hf = CASES[0].hf_config()
    del hf['vision_config']['fullatt_block_indexes']
    assert config_from_hf(hf).vision.fullatt_block_indexes == ()


@pytest.mark.parametrize(('change', 'message'), [
    ({'model_type': 'qwen3_vl'}, 'model_type'),
    ({'model_type': 'qwen2_vl'}, 'hidden_act'),
    ({'num_attention_heads': None}, 'num_attention_heads'),
    ({'num_key_value_heads': 3}, 'num_key_value_heads'),
    ({'use_sliding_window': True, 'sliding_window': 256, 'max_window_layers': 2},
     'use_sliding_window: 1 of 3 layers see the last 256 tokens only.*to false'),
    ({'use_sliding_window': True, 'sliding_window': 256, 'layer_types': [
        'full_attention', 'sliding_attention', 'sliding_attention']}, '2 of 3 layers'),
    ({'hidden_act': 'gelu'}, 'hidden_act'),
    ({'rope_scaling': {'rope_type': 'longrope', 'mrope_section': [2, 3, 3]}},
     "'longrope': take rope_scaling back"),
    ({'rope_scaling': {'rope_type': 'yarn', 'mrope_section': [2, 3, 3]}}, 'factor.*None'),
    ({'rope_scaling': {'type': 'yarn', 'factor': 0.5, 'mrope_section': [2, 3, 3]}}, 'factor.*0.5'),
    ({'rope_scaling': {'type': 'mrope', 'mrope_section': [2, 3, 4]}}, 'mrope_section'),
    ({'vision_config': None}, 'features of the vision tower are 3584 wide'),
    ({'vision_config': {'out_hidden_size': 32, 'depth': None}}, "'depth' is null"),
])
def test_a_config_that_cannot_work_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf({**CASES[0].hf_config(), **change})


@pytest.mark.parametrize('change', [
    {'use_sliding_window': False, 'sliding_window': 8, 'max_window_layers': 0},
    {'sliding_window': 256, 'max_window_layers': 3},
    {'sliding_window': 256},  # From layer 80 on.
    {'sliding_window': 512, 'max_window_layers': 0},  # As many as there are positions for.
    {'sliding_window': None, 'max_window_layers': 0},
    {'sliding_window': 256, 'max_window_layers': 0, 'layer_types': ['full_attention'] * 3},
], ids=str)
def test_sliding_windows_that_change_nothing_are_accepted(change):
    hf = CASES[0].hf_config()
    assert config_from_hf({**hf, 'use_sliding_window': True, **change}) == (
        config_from_hf(hf))


def test_yarn_is_read_from_either_place_and_written_back():
    hf = CASES[0].hf_config()
    rope = {'mrope_section': [2, 3, 3], 'factor': 4, 'beta_fast': 16}
    old = config_from_hf({**hf, 'rope_scaling': {'type': 'yarn', **rope}})
    # Positions trained on are the config's, unless it says others.
    assert old.text.yarn == YarnConfig(4, 512, beta_fast=16)
    new = config_from_hf({**hf, 'rope_scaling': None, 'rope_parameters': {
        'rope_type': 'yarn', 'rope_theta': 10000.0, 'original_max_position_embeddings': 512,
        **rope}})
    assert new == old
    assert config_from_hf(json.loads(json.dumps(old.to_hf()))) == old
    theirs = Qwen2_5_VLConfig(**old.to_hf()).text_config.rope_parameters
    assert (theirs['rope_type'], theirs['factor'], theirs['beta_fast']) == ('yarn', 4, 16)
    scaled = config_from_hf({**hf, 'rope_scaling': {
        'type': 'yarn', **rope, 'mscale': 1.0, 'mscale_all_dim': 0.5}})
    assert scaled.text.yarn.attention_factor == pytest.approx(1.138629 / 1.069315, rel=1e-5)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'config\.json'):
        read_config(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r'config\.json'):
        read_config(tmp_path)


def test_unknown_presets_and_remat_are_refused():
    with pytest.raises(ValueError, match='preset'):
        preset('qwen2_5_vl_1b')
    with pytest.raises(ValueError, match='vocab_size'):
        preset('tiny')
    with pytest.raises(ValueError, match='remat'):
        Qwen2_5_VL(preset('tiny', vocab_size=8), rngs=nnx.Rngs(0), remat='some')


def test_parameters_have_the_wanted_dtype():
    model = nnx.eval_shape(lambda: Qwen2_5_VL(
        preset('tiny', vocab_size=8), rngs=nnx.Rngs(0), param_dtype='bfloat16'))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype('bfloat16')}


def test_suppressed_ids_have_no_probability_and_the_rest_are_as_before():
    plain = preset('tiny', vocab_size=64)
    hidden = jax.random.normal(jax.random.key(1), (2, 3, 128))
    free = Qwen2_5_VL(plain, rngs=nnx.Rngs(0)).logits(hidden)
    masked = Qwen2_5_VL(
        dataclasses.replace(plain, suppressed_ids=(3, 60, 61, 62, 63)), rngs=nnx.Rngs(0)
    ).logits(hidden)
    allowed = np.setdiff1d(np.arange(64), (3, 60, 61, 62, 63))
    np.testing.assert_array_equal(masked[..., allowed], free[..., allowed])
    probabilities = jax.nn.softmax(masked)
    assert (probabilities[..., (3, 60, 61, 62, 63)] == 0).all()
    np.testing.assert_allclose(probabilities[..., allowed].sum(-1), 1, rtol=1e-6)


def test_suppressed_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match='suppressed_ids'):
        dataclasses.replace(preset('tiny', vocab_size=64), suppressed_ids=(64,))


def test_suppressed_ids_are_not_part_of_a_checkpoint():
    config = dataclasses.replace(preset('qwen2_5_vl_3b'), suppressed_ids=(151655,))
    assert config_from_hf(config.to_hf()) == preset('qwen2_5_vl_3b')
