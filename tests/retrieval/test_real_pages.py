"""Retrieval on 39 real pages, 99 real questions, English and Chinese, through OCR."""

import dataclasses
from pathlib import PurePath

import pytest

from tests.retrieval.engines import index_words
from vrag_jax.corpus.ocr import OcrReader
from vrag_jax.corpus.page_texts import page_texts
from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.records import Question, load_questions
from vrag_jax.evaluation.retrieval_quality import evaluate_retrieval
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder


def with_pages(question: Question, store: PageStore) -> Question:
    document = PurePath(question.file_name).stem
    page_ids = [store.find(document, page) for page in question.reference_pages]
    assert None not in page_ids
    return dataclasses.replace(question, page_ids=tuple(page_ids))


@pytest.mark.slow  # the OCR takes about two minutes on one core
def test_recall_on_real_questions(shared_dir, tmp_path, pytestconfig):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    store = PageStore.open(shared_dir / 'real_pages' / 'pages.jsonl')
    questions = [with_pages(question, store) for question in
                 load_questions(shared_dir / 'real_pages' / 'questions.json')]
    # What was read stays in pytest's cache folder for the next run.
    reader = OcrReader(pytestconfig.cache.mkdir('ocr'))
    index_words(store, page_texts(store, reader), NgramEncoder(), tmp_path)
    result = evaluate_retrieval(SearchEngine.open(tmp_path, store), questions)
    assert len(questions) == 99
    assert result['recall@1'] >= 0.85
    assert result['recall@5'] >= 0.97
    assert result['ndcg@10'] >= 0.94
