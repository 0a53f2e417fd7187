"""Pages that queries name: what counts as a name, printed numbers, and where they rank."""

import numpy as np
import pytest

from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever
from vrag_jax.retrieval.page_references import NamedPages, named_pages, printed_numbers


@pytest.mark.parametrize('query,numbers', [
    ('According to the chart on page 14, how much time was spent?', [14]),
    ('How many people are there in  Page 5?', [5]),
    ('the figure at the top of page 6985', [6985]),
    ('What date is at the beginning of page(1)?', [1]),
    ('Compare slides 3 and 7', [3, 7]),
    ('the tables on pages 3, 4, and 9', [3, 4, 9]),
    ('see pp. 12-14', [12, 13, 14]),
    ('pages 1 to 300 of the manual', []),
    ('the first rectangle of the page two', [2]),
    ('the fax number on page fourteen', [14]),
    ('第3页的图表', [3]), ('第十二頁', [12]), ('第二十页', [20]), ('第三页', [3]),
])
def test_numbers_of_pages_are_read(query, numbers):
    assert [page.number for page in named_pages(query)] == numbers
    assert all(page.printed for page in named_pages(query))


@pytest.mark.parametrize('query,number', [
    ('What is on the second page?', 2), ('the 3rd slide', 3), ('the cover page', 1),
    ('people in the images on the cover', 1), ('the title slide', 1),
    ('Is there a signature on the last page?', -1), ('the second to last page', -2),
    ('the second-last slide', -2), ('the penultimate page', -2), ('the final page', -1),
    ('In the figure at Page at the second last, how many people stand?', -2),
    ('the page at the last', -1), ('最后一页有签名吗', -1), ('封面的标题', 1),
])
def test_places_of_pages_are_read(query, number):
    assert named_pages(query) == ((number, False),)


@pytest.mark.parametrize('query', [
    'How many pages does the report have?', 'revenue of 2019', 'Figure 3 and Table 2',
    'List all pages, formatted as a list like ["Page 2", "Page 4"].', 'a 16-page report',
    'web page 3', 'one-page 4', 'pages', 'What page has a snowflake?', 'landing-page 2',
    'Which page 3.5 version?', 'page 20% larger', 'the twenty-first page', 'version 3 pagers',
    '第三季度', 'the last pages', '',
])
def test_other_numbers_name_no_page(query):
    assert named_pages(query) == ()


def test_printed_numbers_count_on_from_page_to_page():
    texts = ['Title 2019', 'Contents', *(f'Some text\nof 2019\n{n}' for n in range(1, 7))]
    assert printed_numbers(texts) == [frozenset(), frozenset(),
                                      *(frozenset({n}) for n in range(1, 7))]


def test_spreads_have_two_numbers_and_a_gap_is_filled():
    spreads = [f'{2 * n}\nleft and right\n{2 * n + 1}' for n in range(1, 6)]
    assert printed_numbers(spreads) == [{2 * n, 2 * n + 1} for n in range(1, 6)]
    texts = ['a\n11', 'b\n12', 'a figure without a number', 'c\n14', 'd\n15']
    assert printed_numbers(texts) == [{11}, {12}, {13}, {14}, {15}]


def test_numbers_that_do_not_count_on_are_no_page_numbers():
    assert printed_numbers(['2019\na\n7', '2019\nb\n3', '2019\nc\n12', '2019\nd\n1']) == [
        frozenset()] * 4
    assert printed_numbers(['1\nonly page']) == [frozenset()]
    assert printed_numbers([]) == []


TEXTS = ['growth of travel in Asia', 'a chart of hotels', 'hotels in Asia', 'hotels of Europe',
         'prices of fuel']


@pytest.fixture
def make_engine(tmp_path):
    def make(documents):
        pages = [Page(f'{name}_{number}', name, number, 'page.png', 8, 6, text)
                 for name, texts in documents.items() for number, text in enumerate(texts, 1)]
        store = PageStore(tmp_path, pages)
        return SearchEngine(store, Bm25Retriever.of_texts(store.ids, [p.text for p in pages]))
    return make


def first(engine, query, k=10, **filters):
    return [hit.page_id for hit in engine.search([query], k, filters or None)[0]]


def test_the_named_page_of_the_document_that_is_meant_comes_first(make_engine):
    engine = make_engine({'a': TEXTS, 'b': ['rice', 'wheat', 'oats', 'barley', 'rye']})
    assert first(engine, 'hotels in Asia')[0] == 'a_3'
    assert first(engine, 'hotels in Asia on page 5')[0] == 'a_5'  # Shares no word with the query.
    assert first(engine, 'rice on the last page')[0] == 'b_5'
    assert first(engine, 'hotels in Asia on page 50') == first(engine, 'hotels in Asia')


def test_a_printed_number_comes_before_the_place(make_engine):
    texts = [f'{text}\n{number}' for number, text in enumerate(TEXTS, start=3)]
    engine = make_engine({'a': texts})
    hits = first(engine, 'hotels, page 5')
    assert hits[0] == 'a_3' and 'a_5' in hits
    assert first(engine, 'prices on the second page')[:2] == ['a_2', 'a_5']


def test_other_queries_are_the_retriever_s_own(make_engine):
    engine = make_engine({'a': TEXTS, 'b': TEXTS})
    retriever, queries = engine.retriever, ['hotels in Asia', 'hotels on page 2', 'fuel 2019']
    ids, scores = NamedPages(engine.store, engine.store.ids).search(retriever, queries, 3)
    own_ids, own_scores = retriever.search(queries, 3)
    for place in (0, 2):
        assert ids[place] == own_ids[place]
        np.testing.assert_array_equal(scores[place], own_scores[place])
    assert ids[1] != own_ids[1]
    assert scores[1].dtype == np.float32 and list(scores[1]) == sorted(scores[1], reverse=True)


def test_filters_and_k_hold_for_named_pages(make_engine):
    engine = make_engine({'a': TEXTS, 'b': TEXTS})
    assert len(first(engine, 'hotels in Asia on page 5', k=2)) == 2
    assert first(engine, 'hotels on page 5', document='b')[0] == 'b_5'
    assert 'a_5' not in first(engine, 'hotels on page 5', document='b')
    assert first(engine, 'cats and dogs on page 5', document='b') == ['b_5']
    assert first(engine, 'cats and dogs on page 5') == []
    assert first(engine, 'hotels on page 5', page=[2, 3]) == first(engine, 'hotels', page=[2, 3])


def test_named_pages_follow_changes_of_the_pages(make_engine, tmp_path):
    engine = make_engine({'a': TEXTS})
    assert first(engine, 'hotels on the last page')[0] == 'a_5'
    engine.add([Page('a_6', 'a', 6, 'page.png', 8, 6, 'an imprint')])
    assert first(engine, 'hotels on the last page')[0] == 'a_6'
    engine.delete(['a_6'])
    assert first(engine, 'hotels on the last page')[0] == 'a_5'
