"""BERT and XLM-R against transformers in torch; windows, prefixes, pooling; the real MiniLM."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from tests.embedders import golden_cases as cases
from vrag_jax.embedders import bert
from vrag_jax.embedders.interface import PageContent
from vrag_jax.embedders.registry import EmbedderConfig, load_embedder
from vrag_jax.embedders.text_embedder import (
    TextEmbedder,
    TextEmbedderConfig,
    pool,
    reads_latin,
    wheel_directory,
)
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.layers import Numerics
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.parallel.mesh import make_mesh

KINDS = pytest.mark.parametrize('kind', ['bert', 'xlm-roberta'])
MEAN = {'pooling_mode_cls_token': False, 'pooling_mode_mean_tokens': True}
CLS = {'pooling_mode_cls_token': True, 'pooling_mode_mean_tokens': False}


def page(text):
    return PageContent('p', text, lambda: pytest.fail('a text embedder loads no image'),
                       (0, 0))


@functools.cache
def golden(kind):
    with np.load(cases.GOLDENS / f'{kind}.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Directories of both kinds, as sentence-transformers writes them."""
    folder = tmp_path_factory.mktemp('text')
    for kind, pooling in (('bert', MEAN), ('xlm-roberta', CLS)):
        shapes = json.loads(str(golden(kind)['shapes']))
        cases.write_checkpoint(folder / kind, cases.bert_config(kind), shapes)
        cases.word_tokenizer().save(str(folder / kind / 'tokenizer.json'))
        (folder / kind / '1_Pooling').mkdir()
        (folder / kind / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))
        (folder / kind / 'modules.json').write_text(json.dumps([
            {'idx': n, 'name': str(n), 'path': path, 'type': f'sentence_transformers.models.{t}'}
            for n, (path, t) in enumerate((('', 'Transformer'), ('1_Pooling', 'Pooling')))]))
    return folder


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@KINDS
@pytest.mark.parametrize('side', ['left', 'right'])
def test_hidden_states_within_1e_4_of_transformers(kind, side, folder):
    sizes = bert.BertConfig.from_hf_file(folder / kind)
    graphdef, shapes = flat_params(nnx.eval_shape(
        lambda: bert.BertEncoder(sizes, Numerics(), nnx.Rngs(0))))
    tensors = hf_checkpoint.Tensors(folder / kind, bert.LAYOUT)
    tensors.expect(shapes, bert.NOT_ENCODER)
    params = hf_checkpoint.read_params(tensors, shapes)
    rows = [cases.word_tokenizer().encode(text).ids for text in cases.TEXTS]
    tokens, mask = np.full((len(rows), 13), 1), np.zeros((len(rows), 13), bool)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == 'right' else slice(13 - len(row), 13)
        tokens[number, place], mask[number, place] = row, True
    hidden = np.asarray(merge(graphdef, params)(tokens, mask))
    for number in range(len(rows)):
        np.testing.assert_allclose(
            hidden[number][mask[number]], golden(kind)[f'text:{number}'], atol=1e-4)


@KINDS
def test_pooling_is_what_the_checkpoint_says(kind, folder):
    embedder = TextEmbedder(folder / kind)
    pooled = {'bert': lambda h: h.mean(0), 'xlm-roberta': lambda h: h[0]}[kind]
    for number, vectors in enumerate(embedder.embed_queries(cases.TEXTS)):
        expected = unit(pooled(golden(kind)[f'text:{number}']))
        assert vectors.shape == (1, 24) and vectors.dtype == np.float32
        np.testing.assert_allclose(vectors[0], expected, atol=1e-4)


def test_one_by_one_as_in_batches_and_over_a_mesh(folder):
    embedder = TextEmbedder(folder / 'bert')
    split = TextEmbedder(folder / 'bert', mesh=make_mesh({'data': 4, 'tensor': 2}))
    together = embedder.embed_queries(cases.TEXTS)
    for text, expected, of_mesh in zip(
            cases.TEXTS, together, split.embed_queries(cases.TEXTS), strict=True):
        np.testing.assert_allclose(embedder.embed_queries([text])[0], expected, atol=1e-5)
        np.testing.assert_allclose(of_mesh, expected, atol=1e-5)
    assert split.fingerprint == embedder.fingerprint


def test_pooling_is_over_real_tokens_on_either_side():
    hidden = jax.random.normal(jax.random.key(0), (1, 4, 3))
    for mask in ([True, True, False, False], [False, False, True, True]):
        real = np.asarray(hidden)[0][mask]
        mask = np.array([mask])
        np.testing.assert_allclose(pool(hidden, mask, 'mean')[0], real.mean(0), rtol=1e-6)
        np.testing.assert_allclose(pool(hidden, mask, 'cls')[0], real[0])


def test_a_long_page_has_windows_that_overlap(folder):
    """Windows of 6 tokens hold 4 words, the last of which begins the next window."""
    config = TextEmbedderConfig(max_length=6, overlap=0.25)
    embedder = TextEmbedder(folder / 'bert', config)
    words = 'revenue of the chart left page grows query revenue chart'.split()
    windows = [' '.join(words[start : start + 4]) for start in (0, 3, 6)]
    vectors = embedder.embed_pages([page(' '.join(words)), page('chart'), page('')])
    np.testing.assert_allclose(
        vectors[0], np.concatenate(embedder.embed_queries(windows)), atol=1e-5)
    assert embedder.multi_vector and [len(v) for v in vectors] == [3, 1, 1]
    # One of exactly one window has no second, empty one.
    assert len(embedder.embed_pages([page(' '.join(words[:4]))])[0]) == 1

    mean = TextEmbedder(
        folder / 'bert', TextEmbedderConfig(max_length=6, overlap=0.25, windows='mean'))
    assert not mean.multi_vector and mean.fingerprint != embedder.fingerprint
    np.testing.assert_allclose(mean.embed_pages([page(' '.join(words))])[0],
                               unit(vectors[0].mean(0, keepdims=True)), atol=1e-5)


def test_prefixes_stand_before_queries_and_each_window(folder):
    plain = TextEmbedder(folder / 'bert', TextEmbedderConfig(max_length=8, overlap=0))
    e5 = TextEmbedder(folder / 'bert', TextEmbedderConfig(
        max_length=8, overlap=0, query_prefix='query: ', page_prefix='passage: '))
    np.testing.assert_allclose(e5.embed_queries(['chart'])[0],
                               plain.embed_queries(['query: chart'])[0], atol=1e-5)
    words = 'revenue of the chart left page grows'
    np.testing.assert_allclose(
        e5.embed_pages([page(words)])[0],
        np.concatenate(plain.embed_queries(['passage: revenue of the chart',
                                            'passage: left page grows'])), atol=1e-5)


def test_few_shapes_are_compiled(folder):
    embedder = TextEmbedder(folder / 'bert', TextEmbedderConfig(max_length=20), batch_tokens=256)
    texts = [' '.join(['chart'] * n) for n in range(1, 18)]
    embedder.embed_pages([page(text) for text in texts])
    embedder.embed_pages([page(text) for text in texts[::-1] + texts])
    assert embedder._run._cache_size() <= 4


def test_equal_digests_are_equal_tokens(folder):
    embedder = TextEmbedder(folder / 'bert')
    one, same, other = (embedder.input_digest(page(t)) for t in
                        ('the chart', 'the  chart\n', 'the page'))
    assert one == same != other


@pytest.mark.parametrize(('file', 'text', 'message'), [
    ('config.json', '{"model_type": "t5"}', 'model_type'),
    ('config.json', None, r'config\.json'),
    ('tokenizer.json', None, r'tokenizer\.json'),
    ('model.safetensors', None, 'model.safetensors'),
    ('1_Pooling/config.json', None, 'pooling must be given'),
    ('1_Pooling/config.json', '{"pooling_mode_max_tokens": true}', 'exactly one of'),
    ('modules.json', '[{"path": "2", "type": "models.Dense"}]', 'Dense'),
])
def test_a_directory_that_does_not_fit_is_named(file, text, message, folder, tmp_path):
    shutil.copytree(folder / 'bert', tmp_path / 'model')
    (tmp_path / 'model' / file).unlink()
    if text is not None:
        (tmp_path / 'model' / file).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_embedder(EmbedderConfig('text', str(tmp_path / 'model')))


def test_lengths_that_cannot_be_are_refused(folder):
    with pytest.raises(ValueError, match='positions'):
        TextEmbedder(folder / 'xlm-roberta', TextEmbedderConfig(max_length=23))
    with pytest.raises(ValueError, match='no room'):
        TextEmbedder(folder / 'bert', TextEmbedderConfig(max_length=2))
    with pytest.raises(ValueError, match='overlap'):
        TextEmbedderConfig(overlap=1)


@pytest.fixture(scope='module')
def minilm():
    try:
        wheel_directory()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return load_embedder(EmbedderConfig())


def test_the_real_minilm_within_1e_4_of_transformers(minilm):
    with np.load(cases.GOLDENS / 'minilm.npz') as file:
        expected = file['vectors']
    found = np.concatenate(minilm.embed_queries(cases.SENTENCES))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_real_minilm_knows_what_is_alike(minilm):
    texts = ('How much money did the company make?', 'Net income rose to 4 billion dollars.',
             'The kitten sleeps on the sofa.')
    query, money, cat = (v[0] for v in minilm.embed_queries(texts))
    assert query @ money > query @ cat + 0.1


def test_the_real_minilm_finds_nothing_for_what_it_cannot_read(minilm):
    read, unread, unit_in_greek = minilm.embed_queries(
        ['Résumé 2019?', '阿里云的网络产品', 'How large is a drop of 5 μm?'])
    assert np.linalg.norm(read) == pytest.approx(1)
    assert np.linalg.norm(unit_in_greek) == pytest.approx(1)
    assert unread.shape == (1, 384) and not unread.any()


@pytest.mark.parametrize(('text', 'expected'), [
    ('plain', True), ('ÄÖ é', True), ('2019 + 3', True), ('', True), ('ＡＢＣ', True),
    ('网络', False), ('Привет', False), ('ECS 的网络 instance types', False),
    ('a drop of 5 μm is large', True)])
def test_scripts_are_told_by_letters(text, expected):
    assert reads_latin(text) is expected
