"""Questions can be answered from what stands on the pages, read by another way."""

import random
import re
from collections import Counter

import pytest

from vrag_jax.data.pageworld.config import QUESTION_TYPES, PageWorldConfig
from vrag_jax.data.pageworld.layout import document_names, sample_document
from vrag_jax.data.pageworld.questions import question_types, sample_questions

CONFIG = PageWorldConfig()
DOCUMENTS = [sample_document(CONFIG, name) for name in document_names(0, 30)]
QUESTIONS = sample_questions(DOCUMENTS, 240, CONFIG.shares, random.Random(0))
PAGES = {(page.document, page.topic): page for pages in DOCUMENTS for page in pages}


def solve(query):
    """Answers a question from its words and the pages: (answer, pages, panels)."""
    names = {page.document for page in PAGES.values()}
    document = next(word for word in re.findall(r'[\w-]+', query) if word in names)
    topics = re.findall(r'(\w+) page', query)
    heading = re.search(r'panel ([A-Z])\b', query)
    position = re.search(r'(top|bottom) (left|right)', query)
    column = re.search(r'(?:column|bar) ([abc])\b', query)
    if 'names' in query:
        # 'panel K on the A page ... names ...' or '... that panel K on the A page names'.
        first_topic = re.search(r'panel [A-Z] on the (\w+) page', query)[1]
        page = PAGES[document, first_topic]
        panel = page.panel(heading[1])
        second = next(p for p in PAGES.values()
                      if (p.document, p.page) == (document, panel.target[0]))
        assert {page.topic, second.topic} == set(topics)
        target = second.panel(panel.target[1])
        return ''.join(target.cells), [page, second], [panel, target]
    page = PAGES[document, topics[0]]
    if position:
        index = 2 * (position[1] == 'bottom') + (position[2] == 'right')
        panel = page.panels[index]
        answer = panel.heading if 'which panel' in query else ''.join(panel.cells)
        return answer, [page], [panel]
    panel = page.panel(heading[1])
    answer = panel.cells['abc'.index(column[1])] if column else ''.join(panel.cells)
    return answer, [page], [panel]


def test_answers_pages_and_evidence_agree_with_the_pages():
    for question in QUESTIONS:
        answer, pages, panels = solve(question.query)
        assert question.answer == answer, question
        assert question.page_ids == tuple(page.page_id for page in pages)
        assert question.reference_pages == tuple(page.page for page in pages)
        boxes = [p.heading_box if 'which panel' in question.query else p.body_box for p in panels]
        assert [e.bbox for e in question.evidence] == boxes
        assert [e.page_id for e in question.evidence] == list(question.page_ids)
        assert question.file_name == f'{pages[0].document}.pdf'


def test_the_asked_kind_of_panel_is_there():
    kinds = {'text': 'text', 'table': 'table', 'chart': 'chart', 'position': 'text',
             'multi_hop': 'pointer'}
    for question in QUESTIONS:
        _, _, panels = solve(question.query)
        if question.extra['kind'] in kinds:
            assert panels[0].kind == kinds[question.extra['kind']]
        assert (len(panels) == 2) == (question.query_type == 'Multi-Hop')


def test_shares_are_exact_and_documents_take_turns():
    counts = Counter(question.extra['kind'] for question in QUESTIONS)
    assert counts == {name: round(240 * share) for name, share in CONFIG.shares.items()}
    # A document is asked 8 times; a few more where another one had run out.
    per_document = Counter(question.extra['document'] for question in QUESTIONS)
    assert len(per_document) == 30
    assert all(abs(count - 8) <= 3 for count in per_document.values())


def test_questions_differ_and_have_unique_ids():
    facts = [tuple(sorted(question.extra.items())) for question in QUESTIONS]
    assert len(set(facts)) == len(facts)
    assert len({question.uid for question in QUESTIONS}) == len(QUESTIONS)
    assert all(len({q.query.replace(q.extra['document'], '') for q in QUESTIONS
                    if q.extra['kind'] == kind}) > 10 for kind in QUESTION_TYPES)


def test_words_are_lower_case_except_headings():
    for question in QUESTIONS:
        assert re.sub(r'panel [A-Z]\b', '', question.query).islower()


def test_source_types():
    sources = {question.extra['kind']: question.source_type for question in QUESTIONS}
    assert sources == {'text': 'Text', 'table': 'Table', 'chart': 'Chart', 'position': 'Layout',
                       'layout': 'Layout', 'multi_hop': 'Text'}


def test_largest_remainders_get_what_is_left_over():
    types = question_types(10, {'a': 0.55, 'b': 0.27, 'c': 0.18}, random.Random(0))
    # 5.5, 2.7 and 1.8: two are left over, for c (0.8) and b (0.7).
    assert Counter(types) == {'a': 5, 'b': 3, 'c': 2}


def test_too_many_questions_are_refused():
    with pytest.raises(ValueError, match="type 'layout'"):
        sample_questions(DOCUMENTS[:1], 17, {'layout': 1.0}, random.Random(0))
    assert len(sample_questions(DOCUMENTS[:1], 16, {'layout': 1.0}, random.Random(0))) == 16
