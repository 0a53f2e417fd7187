"""Runs search many pages by inverted lists, update them, and know indices of another vocabulary."""

import json
import logging

import pytest

from tests.indexing.test_retrievers import AFTER, BEFORE, config_of, hits, make_store
from vrag_jax.indexing.build import is_of, open_engine
from vrag_jax.retrieval.lexical.ngram import NgramListsRetriever, NgramVectorsRetriever
from vrag_jax.retrieval.lexical.ngram_encoder import NgramConfig

MANY = NgramConfig(dims=20)  # Fewer than there are pages.


def test_more_pages_than_dims_are_in_lists_and_the_start_says_so(tmp_path):
    store = make_store(tmp_path / 'pages', BEFORE)
    engine = open_engine(config_of('ngram', encoder=MANY), store, tmp_path / 'work')
    assert isinstance(engine.retriever, NgramListsRetriever)
    assert engine.retriever.describe() == [
        'ngram_lists: 25 pages in inverted lists, searched exactly']
    few = open_engine(config_of('ngram'), store, tmp_path / 'few')
    assert isinstance(few.retriever, NgramVectorsRetriever)
    assert [[page_id for page_id, _ in found] for found in hits(few)] == [
        [page_id for page_id, _ in found] for found in hits(engine)]


@pytest.mark.parametrize('names', [('ngram',), ('bm25',), ('ngram', 'bm25')])
def test_what_stays_is_not_read_again(names, tmp_path, monkeypatch):
    config = config_of(*names, encoder=MANY)
    open_engine(config, make_store(tmp_path / 'pages', BEFORE), tmp_path / 'work')
    store = make_store(tmp_path / 'pages', AFTER)
    fresh = open_engine(config, store, tmp_path / 'fresh')
    counted = []
    import vrag_jax.retrieval.lexical.inverted_lists as lists
    count = lists.count_pages
    monkeypatch.setattr(lists, 'count_pages', lambda texts, *more: (
        counted.extend(texts), count(texts, *more))[1])
    engine = open_engine(config, store, tmp_path / 'work')
    new = [page.text for page in AFTER if page.page_id in ('d01_1', 'd20_1', 'd40_1')]
    assert counted == new * len(names)
    again = open_engine(config, store, tmp_path / 'work')
    assert counted == new * len(names)
    assert hits(engine) == hits(again) == hits(fresh)
    assert [part.fingerprint for part in again.retriever.parts] == [
        part.fingerprint for part in fresh.retriever.parts]
    assert not list((tmp_path / 'work').rglob('scratch'))


@pytest.mark.parametrize('name', ['ngram', 'bm25'])
def test_an_index_of_words_of_before_is_built_anew_with_a_line(name, tmp_path, caplog):
    store, config = make_store(tmp_path / 'pages', BEFORE), config_of(name)
    wanted = hits(open_engine(config, store, tmp_path / 'work'))
    manifest = tmp_path / 'work' / 'index' / 'manifest.json'
    written = json.loads(manifest.read_text())
    fields = written['fields']
    (fields['encoder'] if name == 'ngram' else fields).pop('terms')
    manifest.write_text(json.dumps(written))
    with caplog.at_level(logging.WARNING):
        engine = open_engine(config, store, tmp_path / 'work')
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith('the index is built anew: ') and 'version 1 of the vocabulary' in line
    assert hits(engine) == wanted
    caplog.clear()
    open_engine(config, store, tmp_path / 'work')
    assert not caplog.records


def test_lists_of_other_settings_are_not_those_of_a_config(tmp_path):
    store = make_store(tmp_path / 'pages', BEFORE)
    engine = open_engine(config_of('ngram', encoder=MANY), store, tmp_path / 'work')
    assert is_of(engine.retriever, config_of('ngram', encoder=MANY), {})
    assert not is_of(engine.retriever, config_of('ngram', encoder=NgramConfig(dims=20, b=0.5)), {})
    assert not is_of(engine.retriever, config_of('bm25'), {})


def test_a_page_whose_text_is_not_known_is_not_taken_for_one_without(tmp_path):
    store = make_store(tmp_path / 'pages', BEFORE)
    engine = open_engine(config_of('ngram', encoder=MANY), store, tmp_path / 'work')
    unknown = AFTER[0].__class__('x_1', 'x', 1, '5.png', 8, 6, None)
    with pytest.raises(ValueError, match="text of page 'x_1' is not known"):
        engine.add([unknown])
    engine.add([unknown], texts=['zanzibar'])
    assert [hit.page_id for hit in engine.search(['zanzibar'], 3)[0]] == ['x_1']
