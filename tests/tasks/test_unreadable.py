"""Files that cannot be read end a run with one line that names the field of the config."""

import json
import shutil

import pytest

from configs import vrag_released
from tests.tasks.tiny_checkpoint import write_checkpoint
from vrag_jax.config import ConfigError, parse
from vrag_jax.indexing.build import load_embedders
from vrag_jax.run.context import RunContext
from vrag_jax.run.corpus import build_corpus
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import registry, sft

TURNS = [{'role': 'user', 'content': 'Who won?'},
         {'role': 'assistant', 'content': '<answer>1</answer>'}]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint') / 'policy'
    write_checkpoint(folder, ['Who won?', '<answer>1</answer>'])
    return folder


def config_of(task, **changes):
    config = vrag_released.get_config(task)
    config.mesh.update({'data': -1, 'fsdp': 1})
    config.prompt.text = '{question}'
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return parse(RunConfig, config)


@pytest.mark.parametrize('content', ['{"examples": []}', '[1]', 'x', None])
def test_a_manifest(tmp_path, content):
    if content is not None:
        (tmp_path / 'pages.jsonl').write_text(content)
    config = config_of('grpo', data__manifest=str(tmp_path / 'pages.jsonl'))
    with pytest.raises(ConfigError, match='config.data.manifest: .*pages.jsonl'):
        build_corpus(config, tmp_path)


@pytest.mark.parametrize('records', [
    [{'messages': TURNS}], [{'uid': 1, 'query': 'x', 'reference_answer': 412}]])
def test_questions(tmp_path, records):
    page = {'page_id': 'a_1', 'document': 'a', 'page': 1, 'file': 'a.png', 'width': 1, 'height': 1}
    (tmp_path / 'pages.jsonl').write_text(json.dumps(page))
    (tmp_path / 'a.png').touch()
    (tmp_path / 'q.json').write_text(json.dumps(records))
    config = config_of('grpo', data__manifest=str(tmp_path / 'pages.jsonl'),
                       data__train_questions=str(tmp_path / 'q.json'))
    with pytest.raises(ConfigError, match='config.data.train_questions: .*q.json'):
        build_corpus(config, tmp_path)


def test_an_embedder(tmp_path):
    config = config_of('grpo', retrieval__embedders__pages__path=str(tmp_path / 'none'))
    with pytest.raises(ConfigError, match='config.retrieval.embedders.pages.path: .*none'):
        load_embedders(config.retrieval)


@pytest.mark.parametrize('records', [
    [], {'examples': []}, [{'messages': TURNS[:1]}],
    [{'messages': [{**TURNS[0], 'content': '<image>Who?'}, TURNS[1]], 'images': ['a.png']}],
    [{'messages': [TURNS[0], {**TURNS[1], 'content': 'see <image>'}], 'images': ['a.png']}],
    [{'messages': [*TURNS, {'role': 'user', 'content': '<image>'}, TURNS[1]], 'images': ['b.png']}],
])
def test_conversations(tmp_path, checkpoint, records):
    (tmp_path / 'a.png').touch()
    (tmp_path / 'sft.json').write_text(json.dumps(records))
    config = config_of('sft', data__trajectories=str(tmp_path / 'sft.json'),
                       policy__checkpoint=str(checkpoint))
    with pytest.raises(ConfigError, match='config.data.trajectories: '):
        sft.run(RunContext(config, tmp_path))


@pytest.mark.parametrize(('file', 'content'), [
    ('preprocessor_config.json', None), ('preprocessor_config.json', 'x'),
    ('preprocessor_config.json', {'patch_size': 16}), ('config.json', [1]),
    ('config.json', {'rope_scaling': [1]}), ('config.json', {'vision_config': {'depth': 'two'}}),
    ('config.json', {'hidden_size': 'wide'}), ('config.json', {'num_key_value_heads': 0})])
def test_a_checkpoint(tmp_path, checkpoint, file, content):
    folder = tmp_path / 'policy'
    shutil.copytree(checkpoint, folder)
    if content is None:
        (folder / file).unlink()
    elif isinstance(content, dict):
        whole = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(whole | content))
    else:
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    (tmp_path / 'q.json').write_text('[]')
    (tmp_path / 'p.jsonl').touch()
    config = config_of('grpo', policy__checkpoint=str(folder),
                       data__manifest=str(tmp_path / 'p.jsonl'),
                       data__train_questions=str(tmp_path / 'q.json'))
    with pytest.raises(ConfigError, match=f'config.policy.checkpoint: .*{file}'):
        registry.check(config)
