"""`--config.retrieval.colqwen2=PATH`: which retriever that is, and what it refuses at once."""

import json
import shutil

import pytest

from configs import build_index, build_index_colqwen, grpo_3b, grpo_7b, serve_index
from tests.embedders import colqwen_cases as cases
from vrag_jax.config import ConfigError, parse, with_defaults
from vrag_jax.embedders.registry import EmbedderConfig
from vrag_jax.embedders.visual_embedder import VisualConfig
from vrag_jax.indexing.retrieval_config import RetrievalConfig
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import registry


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoints')
    cases.write_checkpoint(folder / 'base', folder / 'adapter', 'colqwen2')
    cases.write_converted(folder / 'converted')
    return folder


def config_of(folder, path, **more):
    return parse(RunConfig, {
        'task': 'build_index', 'data': {'source': 'files'},
        'retrieval': {'sources': str(folder), 'colqwen2': str(path), **more}})


@pytest.mark.parametrize('module', [grpo_3b, grpo_7b, build_index, serve_index])
def test_one_flag_makes_it_the_only_retriever(module):
    config = with_defaults(module.get_config(), RunConfig)
    config.retrieval.colqwen2 = 'some/where'
    retrieval = parse(RunConfig, config).retrieval
    assert retrieval.retrievers == ('colqwen2',)
    assert dict(retrieval.embedders) == {
        'colqwen2': EmbedderConfig('colqwen', 'some/where', 'bfloat16')}


def test_it_searches_as_build_index_colqwen_does():
    """So that one opens the index that the other has built."""
    other = with_defaults(build_index_colqwen.get_config(), RunConfig)
    one, two = RetrievalConfig(colqwen2='x'), parse(RunConfig, other).retrieval
    assert one.late_interaction == two.late_interaction
    embedders = one.embedders['colqwen2'], two.embedders['pages']
    assert embedders[0].dtype == embedders[1].dtype
    # The checkpoint's own limit is the one that the config names.
    assert embedders[1].visual == VisualConfig(max_pixels=cases.MAX_PIXELS)


def test_nothing_else_may_be_asked_for_beside_it():
    with pytest.raises(ValueError, match=r"colqwen2: searches alone, but retrievers \('ngram', 'b"):
        RetrievalConfig(colqwen2='x', retrievers=('ngram', 'bm25'))
    with pytest.raises(ValueError, match='colqwen2: searches alone'):
        RetrievalConfig(colqwen2='x', embedders={'minilm': EmbedderConfig()})
    with pytest.raises(ValueError, match='colqwen2_base: there is no colqwen2'):
        RetrievalConfig(colqwen2_base='x')


def test_checkpoints_that_are_one_pass(folder):
    for name in ('adapter', 'converted'):
        registry.check(config_of(folder, folder / name))


def test_a_base_is_found_beside_its_adapter_or_given(folder, tmp_path):
    for name in ('adapter', 'base'):
        shutil.copytree(folder / name, tmp_path / name)
    file = tmp_path / 'adapter' / 'adapter_config.json'
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, 'base_model_name_or_path': 'vidore/base'}))
    registry.check(config_of(folder, tmp_path / 'adapter'))
    (tmp_path / 'base').rename(tmp_path / 'elsewhere')
    with pytest.raises(ConfigError, match=r"^config\.retrieval\.colqwen2: .*adapter of "
                                          r"'vidore/base'.*`colqwen2_base`"):
        registry.check(config_of(folder, tmp_path / 'adapter'))
    registry.check(config_of(folder, tmp_path / 'adapter',
                          colqwen2_base=str(tmp_path / 'elsewhere')))


@pytest.mark.parametrize(('config', 'message'), [
    ({'model_type': 'qwen2', 'hidden_size': 32}, "config.json: .*model_type.*'qwen2'"),
    ({'model_type': 'bert'}, "config.json: .*model_type.*'bert'"),
    (cases.config('colqwen2'), 'custom_text_proj'),  # A policy, without a projection.
    (None, r'config\.json: no such model config'),
])
def test_another_checkpoint_is_refused_in_one_line(config, message, folder, tmp_path):
    target = tmp_path / 'other'
    target.mkdir()
    if config is not None:
        (target / 'config.json').write_text(json.dumps(config))
        shapes = {name: shape for name, shape in cases.base_shapes('colqwen2').items()
                  if 'custom_text_proj' not in name}
        cases.tiny.write_checkpoint(target, config, shapes)
    with pytest.raises(ConfigError, match=r'^config\.retrieval\.colqwen2: .*' + message) as caught:
        registry.check(config_of(folder, target))
    assert '\n' not in str(caught.value)


def test_a_wrong_path_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(ConfigError, match=r'^config\.retrieval\.colqwen2: .*no such checkpoint '
                                          r'directory$'):
        registry.check(config_of(folder, tmp_path / 'none'))


def test_a_plan_needs_no_checkpoint(tmp_path):
    """It searches for nothing: sizes can be planned before the weights are there."""
    config = with_defaults(grpo_3b.get_config(), RunConfig)
    config.task, config.grpo.learner.rows = 'plan', 8
    config.mesh.tensor = 1
    config.retrieval.colqwen2 = str(tmp_path / 'none')
    registry.check(parse(RunConfig, config))
