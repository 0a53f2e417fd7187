"""An index knows its pages by their content, and looks at files again only where it has to."""

import dataclasses
import hashlib
import json
import os
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vrag_jax.corpus import identity
from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.indexing.build import open_engine
from vrag_jax.indexing.embed_corpus import contents
from vrag_jax.indexing.retrieval_config import RetrievalConfig
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.lexical.ngram import NgramVectorsRetriever
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder
from vrag_jax.retrieval.single_vector.retriever import DenseRetriever


class ColourEmbedder:
    """The colour of a page."""

    kind, dims, fingerprint, reads, multi_vector = 'colour', 3, 'colours', 'image', False

    def embed_pages(self, pages):
        rows = [np.asarray(p.load_image())[0, 0].astype(np.float32)[None] + 1 for p in pages]
        return [row / np.linalg.norm(row) for row in rows]

    def embed_queries(self, queries):
        return [np.ones((1, 3), np.float32) / np.sqrt(3) for _ in queries]


@pytest.fixture
def store(make_store):
    """Pages of images of equal sizes in bytes, whose texts have to be read from them."""
    store = make_store([None, None, None])
    sizes = [store.path(i).stat().st_size for i in store.ids]
    for page_id in store.ids:
        path = store.path(page_id)
        path.write_bytes(path.read_bytes().ljust(max(sizes) + 100, b'\0'))
    return store


def replaced(store, page_id):
    path = store.path(page_id)
    size = path.stat().st_size
    Image.new('RGB', (40, 30), (0, 0, 77)).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b'\0'))
    assert path.stat().st_size == size
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))


def text_engine(store):
    return SearchEngine(store, NgramVectorsRetriever.fit(
        NgramEncoder(), store.ids, ['red one', 'red two', 'red three']))


def image_engine(store):
    embedder = ColourEmbedder()
    vectors = np.concatenate(embedder.embed_pages(contents(store, [''] * len(store))))
    return SearchEngine(store, DenseRetriever.of_vectors(embedder, store.ids, vectors))


@pytest.mark.parametrize('make', [text_engine, image_engine])
def test_an_image_of_equal_size_is_another_page(store, tmp_path, make):
    make(store).save(tmp_path / 'index')
    SearchEngine.open(tmp_path / 'index', store, [ColourEmbedder()])
    replaced(store, 'p2')
    with pytest.raises(ArtifactError, match="of 'p2' and 0 more"):
        SearchEngine.open(tmp_path / 'index', store, [ColourEmbedder()])


def test_files_are_hashed_only_where_their_time_is_another(store, tmp_path, monkeypatch):
    hashed = []
    real = identity._file_digest
    monkeypatch.setattr(identity, '_file_digest',
                        lambda file, *stat: hashed.append(file.name) or real(file, *stat))
    text_engine(store).save(tmp_path / 'index')
    assert sorted(set(hashed)) == ['1.png', '2.png', '3.png']
    hashed.clear()
    engine = SearchEngine.open(tmp_path / 'index', store)
    engine.save(tmp_path / 'index')  # Takes over what the version before has known.
    assert hashed == []
    os.utime(store.path('p2'), ns=(0, 0))  # Touched, and the same as before.
    SearchEngine.open(tmp_path / 'index', store)
    assert set(hashed) == {'2.png'}


def test_images_that_nobody_reads_are_not_hashed(make_store, tmp_path, monkeypatch):
    store = make_store(['red one', 'red two', 'red three'])
    monkeypatch.setattr(identity, '_file_digest', None)
    text_engine(store).save(tmp_path / 'index')
    os.utime(store.path('p2'), ns=(0, 0))
    SearchEngine.open(tmp_path / 'index', store)


@pytest.mark.parametrize('changes', [
    lambda keys: {page_id: key[:2] for page_id, key in keys.items()},  # Without stamps of images.
    lambda keys: {page_id: [*key[:2], None] for page_id, key in keys.items()}])
def test_an_index_that_does_not_know_its_images_is_to_be_built_again(store, tmp_path, changes):
    image_engine(store).save(tmp_path / 'index')
    manifest = json.loads((tmp_path / 'index' / 'manifest.json').read_text())
    file = tmp_path / 'index' / manifest['data'] / 'page_keys.json'
    file.write_text(json.dumps(changes(json.loads(file.read_text()))))
    manifest['files']['page_keys.json'] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest['sizes']['page_keys.json'] = file.stat().st_size
    (tmp_path / 'index' / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match='does not say what its pages were.*build_index'):
        SearchEngine.open(tmp_path / 'index', store, [ColourEmbedder()])


def test_a_page_in_another_file_is_the_same(store, tmp_path):
    """As in a document that has become another by one image more."""
    image_engine(store).save(tmp_path / 'index')
    store.path('p2').rename(store.folder / 'other.png')
    manifest = store.folder / 'pages.jsonl'
    manifest.write_text(manifest.read_text().replace('"2.png"', '"other.png"'))
    moved = type(store).open(manifest)
    SearchEngine.open(tmp_path / 'index', moved, [ColourEmbedder()])


def test_text_that_ocr_has_read_is_that_of_the_image_that_is_there(tmp_path):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")

    def write(word):
        image = Image.new('RGB', (400, 90), 'white')
        ImageDraw.Draw(image).text((20, 20), word, 'black', ImageFont.load_default(36))
        image.save(tmp_path / 'a.png')
        (tmp_path / 'a.png').write_bytes((tmp_path / 'a.png').read_bytes().ljust(20_000, b'\0'))

    config = RetrievalConfig(retrievers=('ngram',), ocr=True)
    for word, other in (('HARBOUR', 'MELONS'), ('MELONS', 'HARBOUR')):
        write(word)
        PageStore.write(tmp_path / 'pages.jsonl', [Page('a', 'a', 1, 'a.png', 400, 90)])
        engine = open_engine(config, PageStore.open(tmp_path / 'pages.jsonl'), tmp_path / 'work')
        found = [[hit.page_id for hit in hits] for hits in engine.search([word, other], 1)]
        assert found == [['a'], []]


def test_an_index_of_the_release_before_is_opened_and_updated(make_store, tmp_path):
    """It noted of images that nobody reads the file's name and sizes; its fields were the same."""
    store, config = make_store(['red one', 'red two', 'red three']), RetrievalConfig()
    open_engine(config, store, tmp_path)
    manifest = json.loads((tmp_path / 'index' / 'manifest.json').read_text())
    assert manifest['version'] == 1 and manifest['fields']['kind'] == 'dense'
    file = tmp_path / 'index' / manifest['data'] / 'page_keys.json'
    keys = {page_id: [text, '0123456789abcdef' * 2, None]
            for page_id, (text, *_) in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(keys))
    manifest['files']['page_keys.json'] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest['sizes']['page_keys.json'] = file.stat().st_size
    (tmp_path / 'index' / 'manifest.json').write_text(json.dumps(manifest))
    open_engine(config, store, tmp_path)
    assert json.loads(file.read_text()) == keys  # It was opened, not built.
    pages = [dataclasses.replace(page, text='blue') if page.page_id == 'p2' else page
             for page in store]
    engine = open_engine(config, PageStore(store.folder, pages), tmp_path)
    assert engine.search(['blue'], 1)[0][0].page_id == 'p2'


def test_a_page_has_changed_for_those_who_read_what_has():
    before = {i: identity.PageIdentity(f'text {i}', f'image {i}') for i in 'abc'}
    now = {'d': identity.PageIdentity('new', 'new'), 'c': before['c'],
           'a': before['a']._replace(text='other')}
    found = identity.page_changes(before, now, ['text'])
    assert found == (['c'], ['d', 'a'], {'a', 'b'})
    assert identity.page_changes(before, now, ['image']) == (['c', 'a'], ['d'], {'b'})
    assert identity.page_changes(before, now, ['image', 'text']) == found
