"""What searches where a config does not say it, and the line that says it."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from configs import build_index, build_index_colqwen, build_index_hybrid
from vrag_jax.config import ConfigError, parse, with_defaults
from vrag_jax.embedders.registry import EmbedderConfig
from vrag_jax.indexing.build import announce
from vrag_jax.indexing.retrieval_config import (
    FUSION_CONSTANT,
    NGRAM_WEIGHT,
    TEXT_WEIGHT,
    RetrievalConfig,
)
from vrag_jax.retrieval.fusion import HybridConfig
from vrag_jax.run.run_config import RunConfig

TEXT, IMAGES = EmbedderConfig(), EmbedderConfig(kind='colqwen', path='colqwen2')
MEASURED = HybridConfig((NGRAM_WEIGHT, TEXT_WEIGHT), FUSION_CONSTANT)


def test_without_embedders_the_words_alone_search():
    config = RetrievalConfig()
    assert config.retrievers == ('ngram',) and config.hybrid == HybridConfig()


def test_a_text_embedder_is_fused_with_the_words_by_measured_weights():
    config = RetrievalConfig(embedders={'minilm': TEXT})
    assert config.retrievers == ('ngram', 'minilm') and config.hybrid == MEASURED


def test_a_text_embedder_beside_the_words_is_one_flag():
    config = parse(RetrievalConfig, {'text_embedder': 'checkpoints/e5-small'})
    assert config.retrievers == ('ngram', 'e5-small') and config.hybrid == MEASURED
    assert config.embedders == {'e5-small': EmbedderConfig(path='checkpoints/e5-small')}
    assert config.embedder_field('e5-small') == 'text_embedder'
    again = dataclasses.replace(config, index_dir='elsewhere')
    assert (again.retrievers, again.hybrid) == (config.retrievers, config.hybrid)
    # The same index as that of the config that says it at length.
    long = RetrievalConfig(embedders={'minilm': TEXT})
    assert RetrievalConfig(text_embedder='minilm') == dataclasses.replace(
        long, text_embedder='minilm')
    with pytest.raises(ConfigError, match='text_embedder: is fused with ngram, but'):
        parse(RetrievalConfig, {'text_embedder': 'minilm', 'retrievers': ('bm25',)})


def test_two_text_embedders_share_their_weight():
    config = RetrievalConfig(embedders={'a': TEXT, 'b': TEXT})
    assert config.retrievers == ('ngram', 'a', 'b')
    assert config.hybrid.weights == (NGRAM_WEIGHT, TEXT_WEIGHT / 2, TEXT_WEIGHT / 2)


def test_an_embedder_of_images_searches_alone():
    assert RetrievalConfig(embedders={'pages': IMAGES}).retrievers == ('pages',)


def test_what_a_config_names_is_taken():
    config = RetrievalConfig(retrievers=('minilm',), embedders={'minilm': TEXT})
    assert config.retrievers == ('minilm',) and config.hybrid == HybridConfig()
    config = RetrievalConfig(retrievers=('ngram', 'minilm'), embedders={'minilm': TEXT})
    assert config.hybrid == HybridConfig()
    own = HybridConfig((1, 2), 5)
    assert RetrievalConfig(embedders={'minilm': TEXT}, hybrid=own).hybrid == own


def test_embedders_of_both_kinds_have_to_be_named():
    with pytest.raises(ValueError, match="retrievers: embedders of texts and of images .*'pages'"):
        RetrievalConfig(embedders={'minilm': TEXT, 'pages': IMAGES})
    with pytest.raises(ValueError, match=r"embedders\.minilm: is not one of retrievers"):
        RetrievalConfig(retrievers=('ngram',), embedders={'minilm': TEXT})
    with pytest.raises(ValueError, match='hybrid.weights: 3 weights for 2'):
        RetrievalConfig(embedders={'minilm': TEXT}, hybrid=HybridConfig((1, 2, 3)))


@pytest.mark.parametrize('section', [{}, {'retrieval': {'ocr': False}}])
def test_defaults_filled_in_for_flags_leave_the_choice_open(section):
    config = with_defaults(ConfigDict(section), RunConfig)
    assert config.retrieval.retrievers == ()
    with config.unlocked():
        config.retrieval.embedders.minilm = ConfigDict({'kind': 'text'})
    assert parse(RetrievalConfig, config.retrieval).retrievers == ('ngram', 'minilm')
    config.retrieval.retrievers = ('bm25',)
    with pytest.raises(ConfigError, match='is not one of retrievers'):
        parse(RetrievalConfig, config.retrieval)


@pytest.mark.parametrize('config,names', [
    (build_index, ('ngram',)), (build_index_hybrid, ('ngram', 'minilm')),
    (build_index_colqwen, ('pages',))])
def test_configs_of_build_index_search_by_what_they_say(config, names):
    parsed = parse(RunConfig, with_defaults(config.get_config(), RunConfig)).retrieval
    assert parsed.retrievers == names
    assert parsed.hybrid == (MEASURED if len(names) > 1 else HybridConfig())


@pytest.mark.parametrize('config,line', [
    (RetrievalConfig(), 'search: by ngram\n'),
    (RetrievalConfig(embedders={'pages': IMAGES}), 'search: by pages (colqwen, colqwen2)\n'),
    (RetrievalConfig(('ngram', 'm'), embedders={'m': TEXT}, hybrid=HybridConfig((1, 0.2), 20)),
     'search: by ngram 1, m 0.2 (text, minilm), fused by reciprocal rank (constant 20)\n'),
    (RetrievalConfig(('ngram', 'bm25')),
     'search: by ngram 1, bm25 1, fused by reciprocal rank (constant 60)\n'),
    (RetrievalConfig(url='http://127.0.0.1:8002'),
     'search: by the search service http://127.0.0.1:8002\n'),
])
def test_one_line_says_what_searches(config, line, capsys):
    announce(config)
    assert capsys.readouterr().out == line
