"""What a run leaves behind is what transformers 4.51 and the newest have been seen to read.

`check_transformers.py` runs them and makes the goldens.
"""

import json
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import tiny
from tests.tasks import export_cases as cases
from tests.tasks import exports
from vrag_jax.config import ConfigError, parse
from vrag_jax.data.prompt import Prompt
from vrag_jax.evaluation.evaluate import Evaluation
from vrag_jax.models.common.hf_files import COMPANIONS
from vrag_jax.models.common.lora import merged_parameter
from vrag_jax.models.common.tokenizer import SPECIAL_TOKENS, load_tokenizer
from vrag_jax.run.outputs import export_policy
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import grpo, loop

RECORD = json.loads(cases.RECORD.read_text())
READ = {(version, name): found for version, policies in RECORD['versions'].items()
        for name, found in policies.items()}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return exports.write_source(tmp_path_factory.mktemp('source') / 'checkpoint')


@pytest.fixture(scope='module')
def policies(source, tmp_path_factory):
    """Folders of exported policies: of random weights, and of the checkpoint."""
    work = tmp_path_factory.mktemp('exports')
    return {
        'tiny': exports.export(exports.workspace(work / 'tiny')),
        'stripped': exports.export(exports.workspace(work / 'stripped', checkpoint=str(source)))}


def read(file):
    return json.loads(file.read_text())


def weights(directory):
    return load_file(directory / 'model.safetensors')


def test_the_goldens_are_of_4_51_and_of_a_version_5():
    versions = [version.split('(')[1] for version in RECORD['versions']]
    assert versions[0].startswith('4.51.') and int(versions[1].split('.')[0]) >= 5


@pytest.mark.parametrize('version', list(RECORD['versions']))
@pytest.mark.parametrize('name', ['tiny', 'stripped'])
def test_every_file_that_a_version_has_read_is_there(policies, version, name):
    there = {file.name for file in policies[name].iterdir()}
    # The last two are read by compiled code, which was not watched.
    assert there >= {*READ[version, name]['files'], 'tokenizer.json', 'model.safetensors'}


@pytest.mark.parametrize('name', ['tiny', 'stripped'])
def test_files_say_what_every_version_has_read_in_them(policies, name):
    golden = cases.EXPORTED / name
    for file in golden.iterdir():
        assert read(policies[name] / file.name) == read(file), file.name
    for (_, policy), found in READ.items():
        if policy == name:
            config = read(policies[name] / 'config.json')
            ends = read(policies[name] / 'generation_config.json')['eos_token_id']
            assert (config['torch_dtype'], ends) == (found['dtype'], found['end_ids'])
            assert found['tokenizer'] == read(
                policies[name] / 'tokenizer_config.json')['tokenizer_class']


@pytest.mark.parametrize('name', ['tiny', 'stripped'])
def test_no_file_says_what_crashes_transformers_4(policies, name):
    tokenizer = read(policies[name] / 'tokenizer_config.json')
    assert not isinstance(tokenizer.get('extra_special_tokens', {}), list)
    assert 'TokenizersBackend' not in tokenizer['tokenizer_class']
    assert 'text_config' not in read(policies[name] / 'config.json')


def test_a_policy_without_a_checkpoint_ends_at_both_ends_and_starts_with_its_own_tokens(policies):
    tokenizer = load_tokenizer(policies['tiny'])
    im_end, endoftext = tokenizer.convert_tokens_to_ids(['<|im_end|>', '<|endoftext|>'])
    generation = read(policies['tiny'] / 'generation_config.json')
    assert generation['eos_token_id'] == [im_end, endoftext]
    assert generation['pad_token_id'] == endoftext
    ids = tokenizer.encode(''.join(SPECIAL_TOKENS) + ' panel<think>')
    assert ids == tokenizer.backend_tokenizer.encode(''.join(SPECIAL_TOKENS) + ' panel<think>').ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == ' panel<think>'


def test_files_of_the_checkpoint_are_copied_byte_for_byte(policies, source):
    copied = [name for name in COMPANIONS if (source / name).is_file()]
    assert {'merges.txt', 'generation_config.json', 'added_tokens.json'} < set(copied)
    for name in copied:
        assert (policies['stripped'] / name).read_bytes() == (source / name).read_bytes(), name


def test_the_config_of_the_checkpoint_keeps_what_this_package_does_not_know(policies, source):
    stored = read(source / 'config.json')
    assert 'vision_token_id' in stored and 'depth' not in stored['vision_config']
    assert read(policies['stripped'] / 'config.json') == {**stored, 'torch_dtype': 'bfloat16'}


def test_weights_are_bfloat16_where_there_was_a_checkpoint(policies, source, tmp_path):
    original, exported = weights(source), weights(policies['stripped'])
    assert exported.keys() == original.keys()
    for name, value in original.items():
        assert exported[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(exported[name], value.astype(ml_dtypes.bfloat16), name)
    sizes = [(folder / 'model.safetensors').stat().st_size
             for folder in (policies['stripped'], source)]
    assert sizes[0] < 0.6 * sizes[1]
    whole = exports.export(exports.workspace(
        tmp_path, checkpoint=str(source), export_dtype='float32'))
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, original[name], name)
    assert read(whole / 'config.json')['torch_dtype'] == 'float32'


def test_weights_keep_the_dtype_of_the_parameters_where_there_was_none(policies):
    assert {value.dtype for value in weights(policies['tiny']).values()} == {np.dtype('float32')}
    assert read(policies['tiny'] / 'config.json')['torch_dtype'] == 'float32'


def test_an_unknown_dtype_is_refused_by_name():
    values = tiny.get_config()
    values.policy.export_dtype = 'float16'
    with pytest.raises(ConfigError, match='export_dtype'):
        parse(RunConfig, values)


def test_the_continuation_is_that_of_both_versions(policies):
    logits, continuation = exports.continuation(policies['stripped'])
    np.testing.assert_allclose(logits, RECORD['logits'], atol=1e-3)
    assert continuation == RECORD['continuation']
    assert len(set(continuation)) > 6


def test_merged_adapters_on_a_base_in_8_bits_are_cast_once(source, tmp_path):
    pytest.importorskip('qwix')
    space = exports.workspace(tmp_path, checkpoint=str(source), quantization='int8',
                              lora={'rank': 2, 'alpha': 4.0, 'targets': ('q_proj',)})
    params = {path: value + 0.1 if path.endswith('lora_b') else value
              for path, value in space.initial_params().items()}
    export_policy(space, params, Prompt('{question}'))
    exported = weights(tmp_path / 'policy')
    layer = 'language_model/layers/attention/q_proj/kernel'
    want = np.asarray(merged_parameter(params, space.config.policy.lora, layer), np.float32)
    for i in range(2):
        np.testing.assert_array_equal(
            exported[f'model.layers.{i}.self_attn.q_proj.weight'],
            want[i].T.astype(ml_dtypes.bfloat16))
    change = want[0].T - weights(source)['model.layers.0.self_attn.q_proj.weight']
    assert np.abs(change).mean() > 0.01
    adapter = load_file(tmp_path / 'adapter' / 'adapter_model.safetensors')
    assert {value.dtype for value in adapter.values()} == {np.dtype('float32')}


class EvaluationFailed(Exception):
    """Raised in place of an evaluation."""


@pytest.mark.parametrize(('task', 'phases'), [
    (grpo, ('grpo',)), (loop, ('run_pretraining', 'run_sft', 'run_grpo'))], ids=['grpo', 'loop'])
def test_the_policy_is_there_when_its_evaluation_fails(tmp_path, monkeypatch, task, phases):
    space = exports.workspace(tmp_path)
    params = space.initial_params()
    # Neither trained nor with pages: only the order of what follows is looked at.
    for phase in phases:
        monkeypatch.setattr(task, phase, lambda *args, **kwargs: params)
    monkeypatch.setattr(type(space), 'world', lambda *args, **kwargs: None)
    monkeypatch.setattr(type(space), 'corpus', SimpleNamespace(questions={'train': [], 'test': []}))
    if task is grpo:
        monkeypatch.setattr(grpo, 'report_retrieval', lambda corpus: {})

    def fail(*args, **kwargs):
        raise EvaluationFailed

    monkeypatch.setattr(Evaluation, 'policy', fail)
    monkeypatch.setattr(Evaluation, 'vanilla_rag', fail)
    with pytest.raises(EvaluationFailed):
        task.run(space)
    np.testing.assert_array_equal(
        weights(tmp_path / 'policy')['model.norm.weight'],
        params['language_model/norm/scale'])
    assert (tmp_path / 'policy' / 'generation_config.json').is_file()
