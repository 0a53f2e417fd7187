"""Page recall within documents, by hand; where evidence has text."""

import json

import pytest

from benchmarks.evidence import (
    Box,
    best_possible,
    load_evidence,
    page_recall,
    text_coverage,
)
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.corpus.words import WORDS, Word, write_words
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever

TEXTS = {'a': ['rice of Asia', 'wheat of Asia', 'oats', 'rye', 'rice rice'],
         'b': ['rice rice rice', 'wheat wheat wheat wheat', 'barley']}


def record(document, domain, *questions):
    return {'doc_id': f'{document}.pdf', 'domain': domain, 'questions': [
        {'question': query, 'answer': '', 'type': kinds, 'pages': pages,
         'boxes': [{'page': page, 'page_size': [200.0, 100.0], 'bbox': [0, 0, 100, 50]}
                   for page in pages]} for query, kinds, pages in questions]}


@pytest.fixture
def store(tmp_path):
    return PageStore(tmp_path, [
        Page(f'{name}_{number}', name, number, f'{name}.png', 400, 200, text)
        for name, texts in TEXTS.items() for number, text in enumerate(texts, 1)])


@pytest.fixture
def load(tmp_path, store):
    def load(*records):
        file = tmp_path / 'evidence.json'
        file.write_text(json.dumps(records))
        return load_evidence(file, store)
    return load


@pytest.fixture
def evidence(load):
    return load(
        record('a', 'Reports', ('rice', "['Table']", [1, 5]), ('wheat', '[]', [2]),
               ('wheat of rye', "['Chart', 'Pure-text (Plain-text)']", [1, 4, 2])),
        record('b', 'Guides', ('rice', "['Table']", [2])))


def test_evidence_is_read_with_its_pages_types_and_boxes(evidence):
    assert [item.page_ids for item in evidence] == [
        ('a_1', 'a_5'), ('a_2',), ('a_1', 'a_4', 'a_2'), ('b_2',)]
    assert [item.types for item in evidence] == [
        ('Table',), ('unknown',), ('Chart', 'Pure-text (Plain-text)'), ('Table',)]
    assert evidence[0].boxes[1] == Box('a_5', 0, 0, 0.5, 0.5)


def test_evidence_on_pages_that_are_not_there_is_named(load):
    with pytest.raises(ValueError, match="evidence.json: a: no page 6 for 'rice'"):
        load(record('a', 'Reports', ('rice', '[]', [6])))


def test_recall_is_within_the_document_and_the_mean_of_the_domains(store, evidence):
    engine = SearchEngine(store, Bm25Retriever.of_texts(store.ids, [p.text for p in store]))
    found = page_recall(engine, evidence)
    # 'rice': a_5, a_1; 'wheat': a_2; 'wheat of rye': a_4 and a_2, and not a_1. 'rice' of b: b_1.
    assert found['Reports'] == pytest.approx({
        'recall@1': (1 / 2 + 1 + 1 / 3) / 3, 'recall@3': (1 + 1 + 2 / 3) / 3,
        'recall@5': (1 + 1 + 2 / 3) / 3, 'questions': 3})
    assert found['Guides'] == {'recall@1': 0, 'recall@3': 0, 'recall@5': 0, 'questions': 1}
    assert found['macro'] == pytest.approx({
        'recall@1': 11 / 36, 'recall@3': 8 / 18, 'recall@5': 8 / 18, 'questions': 4})
    assert found['micro']['recall@3'] == pytest.approx(8 / 12)
    assert best_possible(evidence, 1) == pytest.approx(((1 / 2 + 1 + 1 / 3) / 3 + 1) / 2)
    assert best_possible(evidence, 3) == 1


def test_text_of_boxes_is_that_of_words_inside(store, evidence, tmp_path):
    write_words(tmp_path / WORDS, [
        (1, [Word('rice', (0, 0, 40, 20)), Word('of', (150, 0, 210, 20)),
             Word('Asia', (300, 100, 340, 120))]),
        (2, [Word('wheat', (300, 0, 340, 20))])])
    found = text_coverage(evidence, store)
    # Boxes: a_1 (two words inside), a_5 (no words known), a_2; a_1, a_4, a_2; b_2.
    assert found['Table'] == {'boxes': 3, 'with_text': pytest.approx(1 / 3), 'words': 0}
    assert found['all']['boxes'] == 7 and found['all']['with_text'] == pytest.approx(2 / 7)
    assert found['Chart'] == found['Pure-text (Plain-text)']


def test_words_that_ocr_sees_are_looked_for_in_the_text(store, evidence):
    seen = {'a_1': 'RICE 2019', 'a_5': '', 'b_2': 'wheat'}
    found = text_coverage(evidence, store, lambda page_id, box: seen.get(page_id, 'maize'))
    assert found['Table']['words_known'] == pytest.approx((1 / 2 + 1) / 2)
    assert found['Table']['boxes_read'] == 2
