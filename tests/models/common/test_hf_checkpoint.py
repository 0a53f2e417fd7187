"""HF checkpoints: both layouts, shards, dtypes, shardings, errors, and back."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.golden_cases import CASES, GOLDENS, weights
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.parallel.mesh import make_mesh

TIED, UNTIED = CASES[0], CASES[1]


def published_weights(case):
    """The tensors that transformers has for a case, by name (see `make_goldens.py`)."""
    with np.load(GOLDENS / f'{case.name}.npz') as golden:
        return weights(case, json.loads(str(golden['shapes'])))


def new_name(name):
    """A published tensor's name in the layout of transformers 5."""
    if name.startswith('visual.'):
        return f'model.{name}'
    return name.replace('model.', 'model.language_model.', 1)


def write(directory, case, tensors, shards=1):
    """Writes a checkpoint directory; the tensors are dealt to the shards in turn."""
    directory.mkdir(exist_ok=True)
    (directory / 'config.json').write_text(json.dumps(case.hf_config()))
    if shards == 1:
        save_file(tensors, directory / 'model.safetensors')
        return directory
    weight_map = {}
    for number in range(shards):
        file = f'model-{number + 1:05}-of-{shards:05}.safetensors'
        names = list(tensors)[number::shards]
        save_file({name: tensors[name] for name in names}, directory / file)
        weight_map |= dict.fromkeys(names, file)
    (directory / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    return directory


def params_of(directory, **options):
    return flat_params(hf_checkpoint.load(directory, **options))[1]


def assert_same(got, want):
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_tensors_lie_where_upstream_has_them(tmp_path):
    tensors = published_weights(UNTIED)
    params = params_of(write(tmp_path, UNTIED, tensors))
    np.testing.assert_array_equal(
        params['language_model/layers/attention/q_proj/kernel'][1],
        tensors['model.layers.1.self_attn.q_proj.weight'].T)
    np.testing.assert_array_equal(
        params['visual/blocks/attention/qkv/bias'][2], tensors['visual.blocks.2.attn.qkv.bias'])
    np.testing.assert_array_equal(
        params['visual/patch_embed/kernel'],
        tensors['visual.patch_embed.proj.weight'].reshape(32, -1).T)
    np.testing.assert_array_equal(params['lm_head/kernel'], tensors['lm_head.weight'].T)
    np.testing.assert_array_equal(
        params['language_model/embed_tokens/embedding'], tensors['model.embed_tokens.weight'])


@pytest.mark.parametrize('case', [TIED, UNTIED], ids=lambda case: case.name)
def test_both_layouts_one_file_or_sharded_give_the_same_parameters(tmp_path, case):
    tensors = published_weights(case)
    want = params_of(write(tmp_path / 'published', case, tensors))
    renamed = {new_name(name): value for name, value in tensors.items()}
    assert_same(params_of(write(tmp_path / 'new', case, renamed)), want)
    assert_same(params_of(write(tmp_path / 'shards', case, tensors, shards=3)), want)


def test_a_tied_checkpoint_may_hold_the_head_too(tmp_path):
    tensors = published_weights(TIED)
    want = params_of(write(tmp_path / 'a', TIED, tensors))
    doubled = {**tensors, 'lm_head.weight': tensors['model.embed_tokens.weight']}
    assert_same(params_of(write(tmp_path / 'b', TIED, doubled)), want)


def test_parameters_arrive_in_the_wanted_dtype(tmp_path):
    tensors = published_weights(UNTIED)
    want = params_of(write(tmp_path / 'a', UNTIED, tensors))
    half = params_of(tmp_path / 'a', param_dtype='bfloat16')
    assert_same(half, {k: np.asarray(v).astype(ml_dtypes.bfloat16) for k, v in want.items()})
    stored = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    assert_same(params_of(write(tmp_path / 'b', UNTIED, stored), param_dtype='bfloat16'), half)


def test_parameters_arrive_in_the_wanted_sharding(tmp_path):
    want = params_of(write(tmp_path, UNTIED, published_weights(UNTIED)))
    mesh = make_mesh({'fsdp': 2, 'tensor': 2}, jax.devices()[:4])
    shardings = parameter_shardings(want, mesh)
    got = params_of(tmp_path, shardings=shardings)
    assert_same(got, want)
    assert all(got[path].sharding == shardings[path] for path in got)
    kernel = got['language_model/layers/mlp/gate_proj/kernel']
    assert kernel.addressable_shards[0].data.shape == (3, 32, 36)


@pytest.mark.parametrize('case', [TIED, UNTIED], ids=lambda case: case.name)
@pytest.mark.parametrize('limit', [10**9, 40_000])
def test_a_saved_checkpoint_has_exactly_the_published_tensors(tmp_path, case, limit):
    tensors = published_weights(case)
    model = hf_checkpoint.load(write(tmp_path / 'a', case, tensors))
    hf_checkpoint.save(model, tmp_path / 'b', max_shard_bytes=limit)
    files = sorted((tmp_path / 'b').glob('*.safetensors'))
    saved = {name: value for file in files for name, value in load_file(file).items()}
    assert_same(saved, tensors)
    assert not list(tmp_path.glob('*.partial'))
    if limit == 10**9:
        assert [file.name for file in files] == ['model.safetensors']
    else:
        assert len(files) > 1
        assert all(sum(v.nbytes for v in load_file(f).values()) <= limit or len(load_file(f)) == 1
                   for f in files)
        index = json.loads((tmp_path / 'b' / 'model.safetensors.index.json').read_text())
        assert index['weight_map'].keys() == tensors.keys()
        assert index['metadata']['total_size'] == sum(v.nbytes for v in tensors.values())
    again = hf_checkpoint.load(tmp_path / 'b')
    assert again.config == model.config
    assert_same(flat_params(again)[1], flat_params(model)[1])


def test_transformers_loads_a_saved_checkpoint(tmp_path):
    """Runs where torch is installed; elsewhere the key lists above stand for it."""
    torch = pytest.importorskip('torch')
    from transformers import Qwen2_5_VLForConditionalGeneration
    for case, limit in ((TIED, 10**9), (UNTIED, 40_000)):
        tensors = published_weights(case)
        model = hf_checkpoint.load(write(tmp_path / case.name, case, tensors))
        hf_checkpoint.save(model, tmp_path / f'{case.name}-saved', max_shard_bytes=limit)
        theirs, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            tmp_path / f'{case.name}-saved', output_loading_info=True, dtype=torch.float32)
        assert not any(info[kind] for kind in ('missing_keys', 'unexpected_keys',
                                               'mismatched_keys'))
        for name, value in theirs.named_parameters():
            published = name.replace('language_model.', '').replace('model.visual', 'visual')
            np.testing.assert_array_equal(value.detach().numpy(), tensors[published])


def test_an_existing_checkpoint_is_not_overwritten(tmp_path):
    model = hf_checkpoint.load(write(tmp_path / 'a', TIED, published_weights(TIED)))
    with pytest.raises(FileExistsError, match='a exists'):
        hf_checkpoint.save(model, tmp_path / 'a')


def test_what_a_killed_save_left_is_not_taken_over(tmp_path):
    model = hf_checkpoint.load(write(tmp_path / 'a', TIED, published_weights(TIED)))
    (tmp_path / 'b.partial').mkdir()
    (tmp_path / 'b.partial' / 'model-00001-of-00009.safetensors').write_text('half')
    hf_checkpoint.save(model, tmp_path / 'b')
    assert sorted(f.name for f in (tmp_path / 'b').iterdir()) == [
        'config.json', 'model.safetensors']


class TestErrorsNameWhatIsWrong:

    def test_missing_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='nowhere'):
            hf_checkpoint.load(tmp_path / 'nowhere')

    def test_missing_index(self, tmp_path):
        write(tmp_path, TIED, published_weights(TIED), shards=2)
        (tmp_path / 'model.safetensors.index.json').unlink()
        with pytest.raises(FileNotFoundError, match=r'model\.safetensors\.index\.json'):
            hf_checkpoint.load(tmp_path)

    def test_broken_index(self, tmp_path):
        write(tmp_path, TIED, published_weights(TIED), shards=2)
        (tmp_path / 'model.safetensors.index.json').write_text('{"weight')
        with pytest.raises(ValueError, match=r'index\.json'):
            hf_checkpoint.load(tmp_path)

    def test_missing_shard(self, tmp_path):
        write(tmp_path, TIED, published_weights(TIED), shards=2)
        (tmp_path / 'model-00002-of-00002.safetensors').unlink()
        with pytest.raises(FileNotFoundError, match='model-00002-of-00002'):
            hf_checkpoint.load(tmp_path)

    @pytest.mark.parametrize('shards', [1, 2])
    def test_truncated_file(self, tmp_path, shards):
        write(tmp_path, TIED, published_weights(TIED), shards=shards)
        file = sorted(tmp_path.glob('*.safetensors'))[-1]
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match=file.name):
            hf_checkpoint.load(tmp_path)

    def test_missing_tensor(self, tmp_path):
        tensors = published_weights(TIED)
        del tensors['model.layers.1.mlp.up_proj.weight']
        with pytest.raises(ValueError, match=r'missing: model\.layers\.1\.mlp\.up_proj\.weight'):
            hf_checkpoint.load(write(tmp_path, TIED, tensors))

    def test_tensor_that_the_index_names_but_the_shard_lacks(self, tmp_path):
        tensors = published_weights(TIED)
        write(tmp_path, TIED, tensors, shards=2)
        file = tmp_path / 'model-00001-of-00002.safetensors'
        held = load_file(file)
        lost = list(held)[0]
        save_file({k: v for k, v in held.items() if k != lost}, file)
        with pytest.raises(ValueError, match=f'00001-of-00002.*{lost}'):
            hf_checkpoint.load(tmp_path)

    def test_wrong_shape(self, tmp_path):
        tensors = published_weights(TIED)
        tensors['visual.blocks.1.norm1.weight'] = np.ones(31, np.float32)
        with pytest.raises(ValueError, match=r'visual\.blocks\.1\.norm1\.weight.*\(31,\).*\(32,\)'):
            hf_checkpoint.load(write(tmp_path, TIED, tensors))

    def test_tensor_of_another_model(self, tmp_path):
        tensors = published_weights(TIED)
        tensors['model.layers.3.mlp.up_proj.weight'] = tensors['model.layers.2.mlp.up_proj.weight']
        with pytest.raises(ValueError, match=r'model\.layers\.3\.mlp\.up_proj\.weight'):
            hf_checkpoint.load(write(tmp_path, TIED, tensors))


def test_a_parameter_that_is_not_as_announced_is_refused(tmp_path):
    model = hf_checkpoint.load(write(tmp_path / 'a', TIED, published_weights(TIED)))
    params = flat_params(model)[1]
    half = lambda path: params[path].astype('bfloat16')  # noqa: E731
    with pytest.raises(ValueError, match=r'embed_tokens\.weight.*float32.*bfloat16'):
        hf_checkpoint.save_params(half, params, model.config, tmp_path / 'b')
    whole_numbers = jax.tree.map(lambda value: value.astype('int32'), params)
    with pytest.raises(ValueError, match=r'embed_tokens\.weight: dtype must be one of .*int32'):
        hf_checkpoint.save_params(
            whole_numbers.__getitem__, whole_numbers, model.config, tmp_path / 'b')
    assert not (tmp_path / 'b').exists()


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'pytorch_model.bin.index.json'])
def test_pickled_weights_are_named_with_the_command_that_converts_them(tmp_path, name):
    (tmp_path / 'config.json').write_text(json.dumps(
        {**TIED.hf_config(), 'architectures': ['Qwen2_5_VLForConditionalGeneration']}))
    (tmp_path / name).write_bytes(b'')
    with pytest.raises(FileNotFoundError) as error:
        hf_checkpoint.load(tmp_path)
    message = str(error.value)
    assert f'but {name}, which is not read' in message and '\n' not in message
    assert (f"transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained('{tmp_path}', "
            f"torch_dtype='auto').save_pretrained('{tmp_path}')") in message
