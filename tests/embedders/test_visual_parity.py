"""ColQwen2, ColQwen2.5 with its adapter, last-token vectors: against transformers in torch.

Goldens of `make_goldens.py`; weights go through files as they are published, pages and
queries through the tokenizer and the image processor of a directory.
"""

import functools
import json

import numpy as np
import pytest

from tests.embedders import golden_cases as cases
from vrag_jax.embedders.registry import EmbedderConfig, load_embedder
from vrag_jax.embedders.visual import VisualConfig
from vrag_jax.retrieval.embedding import PageContent

PAGES = [PageContent(f'p{n}', '', lambda image=image: image)
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
    kinds = {'colqwen2': ('colqwen2', 'colqwen'), 'colqwen2_5': ('adapter', 'colqwen'),
             'last_token': ('last_token', 'last_token')}

    @functools.cache
    def load(name, batch_tokens=1024, **visual):
        path, kind = kinds[name]
        return load_embedder(EmbedderConfig(
            kind, str(folder / path), batch_tokens=batch_tokens, visual=VisualConfig(**visual)))

    return load


@pytest.mark.parametrize('name', ['colqwen2', 'colqwen2_5', 'last_token'])
def test_pages_and_queries_within_1e_4_of_transformers(name, load):
    embedder = load(name)
    for kind, found in (('page', embedder.embed_pages(PAGES)),
                        ('query', embedder.embed_queries(cases.QUERIES))):
        for number, vectors in enumerate(found):
            expected = golden(name)[f'{kind}:{number}']
            assert vectors.shape == expected.shape and vectors.dtype == np.float32
            np.testing.assert_allclose(vectors, expected, atol=1e-4)
