"""The config.json of an exported model, from that of the checkpoint it came from."""

import copy
import json

import pytest

from tests.models.config_cases import SAVED
from vrag_jax.models.common.hf_files import copy_companions, exported_config
from vrag_jax.models.families import config_from_hf, preset

SAVED_CONFIGS = [(version, name, config) for version, configs in
                 json.loads(SAVED.read_text()).items() for name, config in configs.items()
                 if name != 'colqwen2']
IDS = [f'{version}-{name}' for version, name, _ in SAVED_CONFIGS]


@pytest.mark.parametrize(('version', 'name', 'source'), SAVED_CONFIGS, ids=IDS)
def test_any_versions_config_becomes_one_of_the_same_sizes_that_4_51_reads(version, name, source):
    config = config_from_hf(source)
    out = exported_config(config, 'bfloat16', source)
    assert config_from_hf(out) == config
    assert out['torch_dtype'] == 'bfloat16'
    assert 'text_config' not in out and 'rope_parameters' not in out
    # 4.51 fills in what it knows of the decoder with other sizes.
    assert {'hidden_size', 'num_hidden_layers', 'rope_theta', 'rope_scaling',
            'tie_word_embeddings'} <= out.keys()
    assert out['transformers_version'] == version


@pytest.mark.parametrize(('version', 'name', 'source'), SAVED_CONFIGS, ids=IDS)
def test_what_is_not_known_here_is_kept(version, name, source):
    source = copy.deepcopy(source)
    source['own'] = 1
    source['vision_config']['own'] = 2
    source.get('text_config', source)['other'] = 3
    before = copy.deepcopy(source)
    out = exported_config(config_from_hf(source), 'bfloat16', source)
    assert (out['own'], out['vision_config']['own'], out['other']) == (1, 2, 3)
    assert source == before


def test_a_published_config_is_as_it_was_but_for_the_dtype():
    source = {**preset('qwen2_5_vl_7b').to_hf(), 'torch_dtype': 'float32', 'own': [1, None]}
    source['vision_config']['torch_dtype'] = 'float32'
    want = copy.deepcopy(source)
    want['torch_dtype'] = want['vision_config']['torch_dtype'] = 'bfloat16'
    assert exported_config(preset('qwen2_5_vl_7b'), 'bfloat16', source) == want


@pytest.mark.parametrize('field', ['torch_dtype', 'dtype'])
def test_no_field_goes_on_to_say_the_old_dtype(field):
    nested = json.loads(SAVED.read_text())['5.24.0']['qwen2_5_vl_7b']
    for section in (nested, nested['text_config'], nested['vision_config']):
        section[field] = 'float32'
    out = exported_config(config_from_hf(nested), 'bfloat16', nested)
    assert 'float32' not in json.dumps(out)
    published = {**preset('qwen2_5_vl_7b').to_hf(), field: 'float32'}
    out = exported_config(preset('qwen2_5_vl_7b'), 'bfloat16', published)
    assert (out[field], out['torch_dtype']) == ('bfloat16', 'bfloat16')


def test_without_a_source_it_is_of_the_sizes():
    config = preset('qwen2_5_vl_3b')
    assert exported_config(config, 'float32') == {**config.to_hf(), 'torch_dtype': 'float32'}


@pytest.mark.parametrize(('name', 'fields', 'both'), [
    ('tokenizer_config.json', {'tokenizer_class': 'Qwen2Tokenizer', 'extra_special_tokens': {}},
     None),
    ('tokenizer_config.json',
     {'tokenizer_class': 'TokenizersBackend', 'extra_special_tokens': ['<|image_pad|>']},
     {'tokenizer_class': 'Qwen2Tokenizer', 'additional_special_tokens': ['<|image_pad|>']}),
    ('preprocessor_config.json',
     {'image_processor_type': 'Qwen2VLImageProcessor', 'min_pixels': 3136, 'max_pixels': 12845056,
      'processor_class': 'Qwen2_5_VLProcessor'}, None),
    ('preprocessor_config.json',
     {'image_processor_type': 'Qwen2VLImageProcessorFast',
      'size': {'shortest_edge': 3136, 'longest_edge': 9}},
     {'image_processor_type': 'Qwen2VLImageProcessor', 'min_pixels': 3136, 'max_pixels': 9,
      'size': {'shortest_edge': 3136, 'longest_edge': 9},
      'processor_class': 'Qwen2_5_VLProcessor'})])
def test_files_are_copied_byte_for_byte_but_for_what_transformers_4_cannot_read(
        tmp_path, name, fields, both):
    source, target = tmp_path / 'source', tmp_path / 'policy.partial'
    source.mkdir(), target.mkdir()
    (source / name).write_text(json.dumps(fields))
    (source / 'model.safetensors').write_text('')
    copy_companions(source, target, 'Qwen2_5_VLProcessor')
    assert [file.name for file in target.iterdir()] == [name]
    text = (target / name).read_text()
    assert text == json.dumps(fields) if both is None else json.loads(text) == both
