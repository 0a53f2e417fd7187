"""ColQwen2 and ColQwen2.5 as colpali-engine runs them: vectors, tokens, sizes, in every format.

Goldens of `make_colqwen_goldens.py`. colpali-engine 0.3.5, 0.3.8, 0.3.9 and 0.3.10 give the same
bits, 0.3.12 differs by 1e-6; transformers' own class has the same vectors up to 5.1.
"""

import functools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.embedders import colqwen_cases as cases
from vrag_jax.embedders.interface import PageContent
from vrag_jax.embedders.registry import EmbedderConfig, load_embedder
from vrag_jax.embedders.visual_embedder import VisualConfig

FORMATS = [('colqwen2', 'adapter'), ('colqwen2', 'merged'), ('colqwen2', 'converted'),
           ('colqwen2_5', 'adapter'), ('colqwen2_5', 'merged')]
EVERY = pytest.mark.parametrize(('kind', 'form'), FORMATS, ids=lambda value: value)


def contents(images):
    return [PageContent(f'p{n}', '', lambda image=image: image, image.size)
            for n, image in enumerate(images)]


@functools.cache
def golden(kind):
    with np.load(cases.GOLDENS / f'{kind}_engine.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Each checkpoint in each format: `KIND/FORM`."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for kind in ('colqwen2', 'colqwen2_5'):
        cases.write_checkpoint(folder / kind / 'base', folder / kind / 'adapter', kind)
        cases.write_merged(folder / kind / 'merged', kind)
    cases.write_converted(folder / 'colqwen2' / 'converted')
    return folder


@pytest.fixture(scope='module')
def load(folder):
    @functools.cache
    def load(kind, form, dtype='float32', **visual):
        return load_embedder(EmbedderConfig(
            'colqwen', str(folder / kind / form), dtype, visual=VisualConfig(**visual)))
    return load


@EVERY
def test_vectors_are_those_of_colpali_engine(kind, form, load):
    embedder = load(kind, form)
    for name, found in (('page', embedder.embed_pages(contents(cases.images()))),
                        ('query', embedder.embed_queries(cases.QUERIES))):
        for number, vectors in enumerate(found):
            expected = golden(kind)[f'{name}:{number}']
            assert vectors.shape == expected.shape
            np.testing.assert_allclose(vectors, expected, atol=2e-5)


@EVERY
def test_tokens_are_those_of_colpali_engine(kind, form, load):
    prompts, process = load(kind, form)._prompts, load(kind, form)._process
    for number, page in enumerate(contents(cases.images())):
        ids, _ = prompts.page(process(page))
        assert ids.tolist() == golden(kind)[f'page_ids:{number}'].tolist()
    for number, query in enumerate(cases.QUERIES):
        ids, _ = prompts.query(query)
        assert ids.tolist() == golden(kind)[f'query_ids:{number}'].tolist()


@EVERY
def test_images_are_of_the_size_that_colpali_engine_gives_them(kind, form, load):
    embedder = load(kind, form)
    grids = [embedder._process(page).grid_thw for page in contents(cases.blank_images())]
    assert grids == [tuple(grid) for grid in golden(kind)['grids'].tolist()]
    assert max(h * w // 4 for _, h, w in grids) == 768


def test_positions_in_sequence_are_another_model(load):
    """What transformers since 5.2 does: vectors of pages are far from the trained ones."""
    found = load('colqwen2', 'converted', positions='sequential').embed_pages(
        contents(cases.images()))
    for number, vectors in enumerate(found):
        cosines = (vectors * golden('colqwen2')[f'page:{number}']).sum(1)
        assert cosines.min() < 0.99
        # What stands before the image sees none of it.
        before = load('colqwen2', 'converted')._prompts.before_image
        np.testing.assert_allclose(cosines[:before], 1, atol=1e-5)


@pytest.mark.parametrize('kind', ['colqwen2', 'colqwen2_5'])
def test_bfloat16_is_near(kind, load):
    """Nearer than colpali-engine's own bfloat16, least 0.89 of these random weights."""
    found = load(kind, 'adapter', 'bfloat16').embed_pages(contents(cases.images()))
    for number, vectors in enumerate(found):
        cosines = (vectors * golden(kind)[f'page:{number}']).sum(1)
        assert cosines.min() > 0.9 and np.median(cosines) > 0.99


@pytest.mark.parametrize('size', [
    {'max_pixels': 12_845_056, 'min_pixels': 3136},
    {'longest_edge': 12_845_056, 'shortest_edge': 3136}, None])
@pytest.mark.parametrize('form', ['adapter', 'converted'])
def test_limits_of_qwen_itself_are_not_those_of_colqwen(form, size, folder, tmp_path):
    """Files of 2024 hold Qwen's own, as colpali-engine's code had the 768 tokens."""
    source = folder / 'colqwen2' / form
    stored = cases.preprocessor_config(12_845_056)
    del stored['size']
    if size is None:
        del stored['max_pixels'], stored['min_pixels']
    else:
        stored['size'] = size
    target = tmp_path / form
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    (target / 'preprocessor_config.json').unlink()
    (target / 'preprocessor_config.json').write_text(json.dumps(stored))
    page = contents(cases.blank_images())[1]
    embedder = load_embedder(EmbedderConfig('colqwen', str(target)))
    assert embedder._process(page).tokens == 720
    more = load_embedder(EmbedderConfig(
        'colqwen', str(target), visual=VisualConfig(max_pixels=1024 * 28 * 28)))
    assert 960 < more._process(page).tokens <= 1024


def test_limits_that_are_the_checkpoints_own_are_the_same_embedder(load):
    own, named = load('colqwen2', 'adapter'), load('colqwen2', 'adapter', max_pixels=602_112)
    assert own.fingerprint == named.fingerprint
    assert own.fingerprint != load('colqwen2', 'adapter', max_pixels=602_111).fingerprint


def test_an_adapter_with_the_names_of_later_releases_is_the_same(folder, load, tmp_path):
    source, target = folder / 'colqwen2' / 'adapter', tmp_path / 'adapter'
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    weights = load_file(target / 'adapter_model.safetensors')
    (target / 'adapter_model.safetensors').unlink()
    save_file({name.replace('model.model.layers', 'model.language_model.layers'): value
               for name, value in weights.items()}, target / 'adapter_model.safetensors')
    again = load_embedder(EmbedderConfig('colqwen', str(target)))
    for one, two in zip(again.embed_queries(cases.QUERIES),
                        load('colqwen2', 'adapter').embed_queries(cases.QUERIES), strict=True):
        np.testing.assert_array_equal(one, two)
