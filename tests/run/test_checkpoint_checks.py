"""A checkpoint that cannot be used is refused by the config's check, before a run begins."""

import json

import pytest

from configs import tiny
from tests.tasks import exports
from vrag_jax.config import ConfigError, parse
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks.registry import check


@pytest.fixture
def source(tmp_path):
    return exports.write_source(tmp_path / 'checkpoint')


def config_of(directory, task='loop'):
    values = tiny.get_config()
    values.task = task
    values.policy.checkpoint = str(directory)
    values.mesh.update({'data': 1, 'fsdp': -1})
    values.sampler.slots = 64
    for learner in (values.grpo.learner, values.sft.learner, values.pretrain.learner):
        learner.rows = 8
    return parse(RunConfig, values)


def change(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def no_template(source):
    (source / 'chat_template.json').unlink()
    file = source / 'tokenizer_config.json'
    fields = json.loads(file.read_text())
    fields.pop('chat_template', None)
    file.write_text(json.dumps(fields))


FAULTS = {
    'pickled weights': (
        lambda source: (source / 'model.safetensors').rename(source / 'pytorch_model.bin'),
        r'pytorch_model\.bin, which is not read; convert it .*save_pretrained'),
    'no weights': (lambda source: (source / 'model.safetensors').unlink(),
                   r'neither model\.safetensors nor'),
    'sliding windows': (lambda source: change(
        source / 'config.json', use_sliding_window=True, max_window_layers=1, sliding_window=64),
        'use_sliding_window: 1 of 2 layers'),
    'another rotary type': (lambda source: change(
        source / 'config.json', rope_scaling={'type': 'dynamic', 'factor': 2.0}), 'dynamic'),
    'no chat template': (no_template, r'no chat template: put the chat_template\.jinja'),
}


@pytest.mark.parametrize(('fault', 'message'), FAULTS.values(), ids=list(FAULTS))
def test_what_is_wrong_and_what_to_do_are_one_line(source, fault, message):
    check(config_of(source))
    fault(source)
    with pytest.raises(ConfigError, match=message) as error:
        check(config_of(source))
    assert str(error.value).startswith('config.policy.checkpoint: ')
    assert '\n' not in str(error.value)


def test_a_template_in_the_processors_file_alone_is_enough(source):
    template = json.loads((source / 'chat_template.json').read_text())
    no_template(source)
    (source / 'chat_template.json').write_text(json.dumps(template))
    check(config_of(source))


def test_a_plan_needs_the_config_alone(source):
    (source / 'model.safetensors').unlink()
    (source / 'tokenizer.json').unlink()
    (source / 'vocab.json').unlink()
    check(config_of(source, 'plan'))
    change(source / 'config.json', model_type='qwen3_vl')
    with pytest.raises(ConfigError, match='model_type'):
        check(config_of(source, 'plan'))
