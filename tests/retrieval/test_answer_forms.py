"""Sentences about the form of an answer find no pages; all others do."""

import pytest

from vrag_jax.retrieval.answer_forms import without_answer_form
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever


@pytest.mark.parametrize('form', [
    'Answer in millions.', 'Anwser in millions', 'Please write down the answer in float format.',
    'Write the answer in list format, e.g., ["Jan","Feb"]', 'Return me an integer.',
    'Round your answer to two decimal places.', " Directly answer 'yes' or 'no'.",
    'Please writhe down the answer in float format with 2 decimals.',
    'Enumerate all of them in a list.', 'Give me an appropriate integer.',
    "Format all of the years in a list like ['2006', '2007', '2011']",
    'The answer should be formatted as a list like ["Page 2", "Page 4"].',
    'Answer in units of percents and round to one decimal place. ',
    'Write the answer in list format with alphabetical order.',
])
@pytest.mark.parametrize('gap', [' ', '', '\n'])
def test_what_says_how_to_answer_is_left_out(form, gap):
    question = 'What is the total debt of COSTCO in FY 2021?'
    assert without_answer_form(question + gap + form) == question


@pytest.mark.parametrize('query', [
    'What is the total debt of COSTCO?', 'Answer in millions.', 'List all pages with a logo.',
    'Acme Inc. Give the percentage of women on the board',
    'Acme. List the subsidiaries in alphabetical order with their countries and owners',
    'How many Apps does it have in million?', 'Give the revenue of 2019. Round tables of suppliers',
    'the answer to the question of life', 'What? Answer in a list.',
    '总负债是多少？请以百万为单位回答。', 'Format the date on page 14 as YYYY-MM-DD.', '',
])
def test_what_says_what_is_looked_for_stays(query):
    assert without_answer_form(query) == query


def test_searches_are_without_it(make_store):
    texts = ['total debt of the company', 'write the answer in list format', 'round of millions']
    store = make_store(texts)
    engine = SearchEngine(store, Bm25Retriever.of_texts(store.ids, texts))
    [hits] = engine.search(['What is the total debt? Write the answer in list format.'], 3)
    assert [hit.page_id for hit in hits] == [store.ids[0]]
    [hits] = engine.search(['Write the answer in list format.'], 3)
    assert hits[0].page_id == store.ids[1]
