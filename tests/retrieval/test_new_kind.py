"""A kind of retriever is one module and one line: named, built, opened, updated, fused, served."""

import dataclasses

import httpx
import pytest

from tests.embedders.fake import WordEmbedder
from tests.retrieval import headings
from vrag_jax.config import ConfigError, parse
from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.corpus.pages import PageStore
from vrag_jax.embedders.registry import EmbedderConfig
from vrag_jax.indexing.build import is_of, open_engine
from vrag_jax.indexing.retrieval_config import RetrievalConfig
from vrag_jax.retrieval import kinds
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.single_vector.retriever import DenseRetriever

TEXTS = ['Revenue by region: travel and hotels', 'Hotels in Asia: growth of revenue',
         'Network of data centres', 'Travel figures of the year']


@pytest.fixture
def store(make_store):
    return make_store(TEXTS)


def config_of(*retrievers, **settings):
    return parse(RetrievalConfig, {
        'retrievers': retrievers, 'kinds': {'headings': settings} if settings else {}})


def found(engine, query, k=4):
    return [hit.page_id for hit in engine.search([query], k)[0]]


def test_a_config_names_it_with_its_settings(store, tmp_path):
    config = config_of('headings', words=2)
    assert config.kinds['headings'] == headings.HeadingConfig(2)
    assert config_of('headings').kinds['headings'] == headings.HeadingConfig()
    with pytest.raises(ConfigError, match=r'kinds\.headings\.wordz: no such field'):
        config_of('headings', wordz=2)
    with pytest.raises(ConfigError, match=r'kinds\.headings: words must be positive'):
        config_of('headings', words=0)
    with pytest.raises(ConfigError, match=r'kinds\.headings: is none of the retrievers'):
        config_of('bm25', words=2)
    engine = open_engine(config, store, tmp_path)
    assert found(engine, 'hotels') == ['p2'] and found(engine, 'region') == []
    assert engine.retriever.describe() == ['headings: 4 pages']


def test_it_is_opened_again_and_built_anew_for_other_settings(store, tmp_path, monkeypatch):
    config = config_of('headings')
    built = open_engine(config, store, tmp_path)
    with monkeypatch.context() as changed:
        changed.setattr(headings.HeadingRetriever, 'build', None)  # It is not asked.
        again = open_engine(config, store, tmp_path)
    assert again.retriever.fingerprint == built.retriever.fingerprint
    assert not is_of(again.retriever, config_of('headings', words=1), {})
    assert not is_of(again.retriever, config_of('bm25'), {})
    fewer = open_engine(config_of('headings', words=1), store, tmp_path)
    assert found(fewer, 'travel') == ['p4'] and found(fewer, 'region') == []
    monkeypatch.delitem(kinds._KINDS, ('headings', 'headings'))
    with pytest.raises(ArtifactError, match="retriever 'headings' is unknown; there are .*'bm25'"):
        SearchEngine.open(tmp_path / 'index', store)


def test_it_takes_over_what_changes(store, tmp_path, monkeypatch):
    config = config_of('headings')
    open_engine(config, store, tmp_path)
    pages = [dataclasses.replace(page, text='Region of hills') if page.page_id == 'p3' else page
             for page in store if page.page_id != 'p1']
    monkeypatch.setattr(headings.HeadingRetriever, 'build', None)
    engine = open_engine(config, PageStore(store.folder, pages), tmp_path)
    assert engine.retriever.ids == ('p2', 'p3', 'p4') and found(engine, 'region') == ['p3']
    engine.delete(['p3'])
    assert found(engine, 'region') == []


def test_it_is_fused_with_another_and_served(store, tmp_path):
    serving = pytest.importorskip('tests.serving.conftest', reason="needs the extra 'serve'")
    from vrag_jax.serving.live import LiveIndex
    config = config_of('bm25', 'headings')
    engine = open_engine(config, store, tmp_path)
    # BM25 alone finds the word in p1 first; p2 has both in its heading.
    assert found(engine, 'hotels asia')[0] == 'p2'
    assert [part.name for part in engine.retriever.parts] == ['bm25', 'headings']
    live = LiveIndex(lambda: (store, SearchEngine.open(tmp_path / 'index', store)),
                     [tmp_path / 'index' / 'manifest.json'])
    with serving.running(live) as (url, _):
        answer = httpx.post(f'{url}/search', json={'queries': ['hotels asia'], 'k': 1}, timeout=20)
    assert answer.json()['results'][0][0]['page_id'] == 'p2'


def test_an_embedder_can_name_what_searches_its_vectors(store, tmp_path, monkeypatch):
    class Doubled(DenseRetriever):
        """Single vectors, whose scores are doubled."""

        name = kind = 'doubled'

        def search(self, queries, k, allowed=None):
            ids, scores = super().search(queries, k, allowed)
            return ids, [2 * values for values in scores]

    monkeypatch.setitem(kinds._KINDS, ('doubled', 'doubled'), Doubled)
    embedders = {'words': WordEmbedder(False)}
    plain, doubled = (RetrievalConfig(retrievers=('words',), embedders={
        'words': EmbedderConfig(retriever=name)}) for name in ('', 'doubled'))
    [expected] = open_engine(plain, store, tmp_path, embedders).search(['travel'], 4)
    [hits] = open_engine(doubled, store, tmp_path, embedders).search(['travel'], 4)
    assert hits == [(page_id, pytest.approx(2 * score)) for page_id, score in expected]
    opened = open_engine(doubled, store, tmp_path, embedders).retriever
    assert isinstance(opened, Doubled) and not is_of(opened, plain, embedders)
    with pytest.raises(ValueError, match="'doubled' searches vectors of several a page"):
        open_engine(doubled, store, tmp_path / 'other', {'words': WordEmbedder()})


def test_a_name_that_is_taken_is_refused():
    class Other(headings.HeadingRetriever):
        """Has the name and the files of `headings`."""

    with pytest.raises(ValueError, match="'headings' of files 'headings' is HeadingRetriever"):
        kinds.register(Other)
