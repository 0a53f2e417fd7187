"""ColQwen2, ColQwen2.5 with its adapter, last-token vectors: against transformers 5 in torch.

Goldens of `make_goldens.py`; weights go through files as they are published, pages and
queries through the tokenizer and the image processor of a directory.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.embedders import golden_cases as cases
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.embedders import colqwen
from vrag_jax.embedders.interface import PageContent
from vrag_jax.embedders.registry import EmbedderConfig, load_embedder
from vrag_jax.embedders.visual_embedder import VisualConfig
from vrag_jax.indexing.embed_corpus import embed_corpus
from vrag_jax.models.common.parameters import merge
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.parallel.sharding import RULES

PAGES = [PageContent(f'p{n}', '', lambda image=image: image, image.size)
         for n, image in enumerate(cases.images())]


@functools.cache
def golden(name):
    with np.load(cases.GOLDENS / f'{name}.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Checkpoints `colqwen2`, `base` and `adapter` (of ColQwen2.5), `last_token`."""
    folder = tmp_path_factory.mktemp('checkpoints')
    stored = golden('colqwen2')
    for name, config, kind in (
            ('colqwen2', json.loads(str(stored['config'])), 'colqwen2'),
            ('base', cases.qwen_config('qwen2_5_vl'), 'colqwen2_5'),
            ('last_token', cases.qwen_config('qwen2_5_vl'), 'last_token')):
        shapes = json.loads(str(golden(kind)['shapes']))
        cases.write_checkpoint(folder / name, config, shapes)
        cases.write_processor(folder / name)
    cases.write_adapter(folder / 'adapter', str(folder / 'base'))
    return folder


@pytest.fixture(scope='module')
def load(folder):
    """Loads each embedder once: `load(name, batch_tokens)`."""
    # transformers 5.15 and later run a ColQwen2 otherwise than it is trained; see
    # test_colqwen_engine.py for how it is.
    newest = {'positions': 'sequential',
              'query_prompt': f'Query: {{query}}{"<|endoftext|>" * 10}\n'}
    kinds = {'colqwen2': ('colqwen2', 'colqwen'), 'colqwen2_5': ('adapter', 'colqwen'),
             'last_token': ('last_token', 'last_token')}

    @functools.cache
    def load(name, batch_tokens=1024, mesh=None, **visual):
        path, kind = kinds[name]
        visual = {**newest, **visual} if name == 'colqwen2' else visual
        return load_embedder(EmbedderConfig(
            kind, str(folder / path), batch_tokens=batch_tokens, visual=VisualConfig(**visual)),
            mesh)

    return load


NAMES = pytest.mark.parametrize('name', ['colqwen2', 'colqwen2_5', 'last_token'])


@NAMES
def test_pages_and_queries_within_1e_4_of_transformers(name, load):
    embedder = load(name)
    for kind, found in (('page', embedder.embed_pages(PAGES)),
                        ('query', embedder.embed_queries(cases.QUERIES))):
        for number, vectors in enumerate(found):
            expected = golden(name)[f'{kind}:{number}']
            assert vectors.shape == expected.shape and vectors.dtype == np.float32
            np.testing.assert_allclose(vectors, expected, atol=1e-4)


@NAMES
def test_one_by_one_as_in_batches(name, load):
    embedder = load(name)
    together = embedder.embed_pages(PAGES)
    for page, expected in zip(PAGES, together, strict=True):
        np.testing.assert_allclose(embedder.embed_pages([page])[0], expected, atol=2e-5)
    for query, expected in zip(cases.QUERIES, embedder.embed_queries(cases.QUERIES), strict=True):
        np.testing.assert_allclose(embedder.embed_queries([query])[0], expected, atol=2e-5)


@NAMES
def test_split_over_a_mesh_as_on_one_device(name, load):
    embedder = load(name, mesh=make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}))
    for number, vectors in enumerate(embedder.embed_pages(PAGES)):
        np.testing.assert_allclose(vectors, golden(name)[f'page:{number}'], atol=1e-4)


@pytest.mark.parametrize('name', ['base', 'last_token'])
def test_padding_may_lie_on_either_side(name, folder):
    checkpoint = colqwen.find_checkpoint(folder / name, projected=name == 'base')
    graphdef, params, _ = colqwen.load(checkpoint, 'float32', None, RULES)
    lengths, width = (5, 9, 3), 12
    tokens = np.random.default_rng(0).integers(0, 256, (3, width), np.int32)

    def embed(left):
        mask = np.stack([np.arange(width) >= width - n if left else np.arange(width) < n
                         for n in lengths])
        rows = np.zeros_like(tokens)
        rows[mask] = np.concatenate([row[:n] for row, n in zip(tokens, lengths, strict=True)])
        positions = np.broadcast_to(np.maximum(mask.cumsum(1) - 1, 0), (3, 3, width))
        out = np.asarray(merge(graphdef, params).embed_tokens(rows, positions, mask))
        return [row[real] for row, real in zip(out, mask, strict=True)] if out.ndim == 3 else out

    for left, right in zip(embed(True), embed(False), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_pages_of_one_size_are_compiled_once(load):
    embedder = load('colqwen2', batch_tokens=192)  # Two such pages a batch.
    embedder.embed_pages(PAGES[1:3])
    embedder.embed_pages([PAGES[2], PAGES[1], PAGES[1], PAGES[2]])
    assert embedder._run._cache_size() == 1


def test_a_special_token_in_a_query_is_text(load):
    plain, special = load('colqwen2').embed_queries(['end', '<|im_end|>'])
    assert len(special) - len(plain) == len('<|im_end|>') - len('end')


def test_prompts_and_positions_can_be_given(load):
    page = [PAGES[0]]
    usual = load('colqwen2').embed_pages(page)[0]
    assert len(load('colqwen2', page_prompt='<|image_pad|>').embed_pages(page)[0]) < len(usual)
    by_place = load('colqwen2', positions='mrope').embed_pages(page)[0]
    assert np.abs(by_place - usual).max() > 1e-3
    assert len({load('colqwen2').fingerprint,
                load('colqwen2', positions='mrope').fingerprint}) == 2


def test_more_pixels_are_more_tokens(load):
    few, many = (len(load('colqwen2', max_pixels=n * 64).embed_pages([PAGES[1]])[0])
                 for n in (16, 36))
    assert many - few == 36 - 16


def test_vectors_of_bfloat16_are_close_and_unit(folder):
    embedder = load_embedder(EmbedderConfig('colqwen', str(folder / 'colqwen2'), 'bfloat16'))
    vectors = embedder.embed_queries(cases.QUERIES[:1])[0]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # A golden's query ends with a line break, which tokens before it do not see.
    cosines = (vectors * golden('colqwen2')['query:0'][:-1]).sum(1)
    assert cosines.min() > 0.99
    assert {leaf.dtype for leaf in jax.tree.leaves(embedder._params)} == {np.dtype('bfloat16')}


@pytest.mark.parametrize(('change', 'message'), [
    ({'use_dora': True}, 'use_dora'), ({'bias': 'all'}, 'bias'), ({'peft_type': 'IA3'}, 'IA3'),
    ({'modules_to_save': ['custom_text_proj']}, 'modules_to_save'),
    ({'init_lora_weights': 'pissa_niter_4'}, 'init_lora_weights'),
    ({'base_model_name_or_path': 'vidore/colqwen2.5-base'}, 'pass its directory as `base`'),
])
def test_an_adapter_that_cannot_be_merged_is_refused(change, message, folder, tmp_path):
    shutil.copytree(folder / 'adapter', tmp_path / 'adapter')
    file = tmp_path / 'adapter' / 'adapter_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_embedder(EmbedderConfig('colqwen', str(tmp_path / 'adapter')))


def test_an_adapter_of_another_model_is_refused(folder, tmp_path):
    shutil.copytree(folder / 'adapter', tmp_path / 'adapter')
    file = tmp_path / 'adapter' / 'adapter_model.safetensors'
    tensors = load_file(file)
    name = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    save_file({**tensors, name.replace('layers.0', 'layers.7'): tensors[name]}, file)
    with pytest.raises(ValueError, match='do not belong'):
        load_embedder(EmbedderConfig('colqwen', str(tmp_path / 'adapter')))
    save_file({**tensors, name: tensors[name][:, :-1].copy()}, file)
    with pytest.raises(ValueError, match='do not fit'):
        load_embedder(EmbedderConfig('colqwen', str(tmp_path / 'adapter')))


def test_a_pickled_adapter_is_named_with_what_to_do(folder, tmp_path):
    shutil.copytree(folder / 'adapter', tmp_path / 'adapter')
    file = tmp_path / 'adapter' / 'adapter_model.safetensors'
    file.rename(file.with_suffix('.bin'))
    with pytest.raises(FileNotFoundError, match=r'adapter_model\.bin, which is not read; convert'):
        load_embedder(EmbedderConfig('colqwen', str(tmp_path / 'adapter')))


def test_wrong_directories_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='no such checkpoint directory'):
        load_embedder(EmbedderConfig('colqwen', str(tmp_path / 'none')))
    with pytest.raises(FileNotFoundError, match=r'config\.json'):
        load_embedder(EmbedderConfig('colqwen', str(tmp_path)))
    with pytest.raises(ValueError, match='custom_text_proj'):
        load_embedder(EmbedderConfig('colqwen', str(folder / 'last_token')))
    with pytest.raises(ValueError, match='is a ColQwen2'):
        load_embedder(EmbedderConfig('last_token', str(folder / 'colqwen2')))
    with pytest.raises(ValueError, match='custom_text_proj'):  # Its vectors are of tokens.
        load_embedder(EmbedderConfig('last_token', str(folder / 'base')))
    with pytest.raises(ValueError, match='model_type'):
        load_embedder(EmbedderConfig('text', str(folder / 'base')))
    with pytest.raises(ValueError, match='does not read'):
        EmbedderConfig('text', visual=VisualConfig(base='x'))


def test_a_corpus_of_images_on_disk(load, tmp_path):
    pages = []
    for number, image in enumerate(cases.images()):
        image.save(tmp_path / f'{number}.png')
        pages.append(Page(f'p{number}', 'doc', number + 1, f'{number}.png', *image.size, ''))
    PageStore.write(tmp_path / 'pages.jsonl', pages)
    store = PageStore.open(tmp_path / 'pages.jsonl')
    embedder = load('colqwen2')
    vectors = embed_corpus(embedder, store, [''] * len(pages), tmp_path / 'vectors',
                           shard_pages=2, dtype='float32')
    for number, expected in enumerate(embedder.embed_pages(PAGES)):
        np.testing.assert_allclose(vectors[number], expected, atol=2e-5)


def test_grids_say_where_the_tokens_of_the_image_are(load):
    embedder = load('colqwen2')
    for page, (rows, columns, before) in zip(PAGES, embedder.page_grids(PAGES), strict=True):
        image = embedder._process(page)
        ids, _ = embedder._prompts.page(image)
        assert image.grid_thw == (1, 2 * rows, 2 * columns)
        places = np.flatnonzero(ids == cases.ID['<|image_pad|>'])
        assert places.tolist() == list(range(before, before + rows * columns))
    with pytest.raises(ValueError, match='one vector of a page'):
        load('last_token').page_grids(PAGES)


def test_a_page_looks_the_same_if_its_pixels_do(load):
    embedder = load('colqwen2')
    copy = PageContent('copy', 'other text', lambda: cases.images()[0], cases.SIZES[0])
    assert embedder.input_digest(PAGES[0]) == embedder.input_digest(copy)
    assert embedder.input_digest(PAGES[0]) != embedder.input_digest(PAGES[1])
