"""Words that were broken at line ends: joined where that makes a word of their document."""

import json

import pytest

from vrag_jax.corpus.hyphens import join_lines
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.pages import PageStore

# Breaks between syllables, decided by the words themselves: of a typeset book.
TYPESET = ('informa-\ntion ele-\nphant infor-\nmal informal information elephant ')


@pytest.mark.parametrize('text, joined', [
    # What stands elsewhere in the document decides.
    ('a long-\nterm plan. long-term', 'a long-term plan. long-term'),
    ('a long-\nterm plan. longterm', 'a longterm plan. longterm'),
    ('an infor-\nmation. Information', 'an information. Information'),
    ('IN-\nFORMATION, information', 'INFORMATION, information'),
    ('state-of-\nthe-art; state-of-the-art', 'state-of-the-art; state-of-the-art'),
    ('time-to-mar-\nket. market', 'time-to-market. market'),
    # Nothing does.
    ('model X-\n15', 'model X-15'), ('Covid-\n19', 'Covid-19'), ('2019-\n2020', '2019-2020'),
    ('an X-\nray', 'an X-ray'), ('Anglo-\nSaxon', 'Anglo-Saxon'),
    ('Instruct-\nGPT as InstructGPT', 'InstructGPT as InstructGPT'),
    ('non-\nEnglish', 'non-English'), ('infor-\nHeading', 'infor-\nHeading'),
    ('anti-\ninflammatory', 'anti-inflammatory'), ('state-of-\nthe-art', 'state-of-the-art'),
    ('co-\noperate', 'co-operate'), ('a low-\ncost flight', 'a low-cost flight'),
    ('data-\ndriven. The data are driven.', 'data-driven. The data are driven.'),
    ('extrava-\nganza', 'extrava-ganza'),
    # In a typeset book, what is unknown is broken like the rest.
    (TYPESET + 'extrava-\nganza', 'information elephant informal informal information elephant '
                                  'extravaganza'),
    (TYPESET + 'X-\n15 anti-\ninflammatory', 'information elephant informal informal information '
                                             'elephant X-15 anti-inflammatory'),
    # Soft hyphens are hyphens at line ends alone.
    ('infor\xad\nmation ex\xadtra', 'information extra'),
    ('an infor-\nmation, in\xadfor\xadmation', 'an information, information'),
    # No broken words.
    ('one -\ntwo', 'one -\ntwo'), ('a list:\n- one\n- two', 'a list:\n- one\n- two'),
    ('A-\nB', 'A-\nB'), ('well-known', 'well-known'), ('', '')])
def test_broken_words_are_whole(text, joined):
    assert join_lines([text]) == [joined]


def test_the_words_of_the_document_are_those_of_all_its_pages():
    assert join_lines(['infor-\nmation', 'long-\nterm', 'information', 'long-term']) == [
        'information', 'long-term', 'information', 'long-term']
    # Halves of broken words are not words that stand elsewhere.
    assert join_lines(['a fo-\nrest', 'a fo-\nrest']) == ['a fo-rest', 'a fo-rest']


def test_a_word_that_goes_on_on_the_next_page_is_whole_on_the_first():
    pages = ['The harbour dues and infor-\nAnnual report 12', 'Chapter 2\nmation of all. '
             'Information']
    assert join_lines(pages) == ['The harbour dues and information\nAnnual report 12', pages[1]]
    assert join_lines(['a fo-', 'rest']) == ['a fo-', 'rest']


def test_ingestion_joins_by_the_whole_document(page_pdf, tmp_path):
    line = 'BT /F1 12 Tf 14 TL 20 250 Td (%s) Tj T* (%s) Tj ET'
    source = tmp_path / 'in'
    source.mkdir()
    page_pdf([line % ('We want infor-', 'mation for long-'), line % ('a long-', 'term plan'),
              line % ('information', 'of a long-term plan')]).rename(source / 'a.pdf')
    texts = []
    for step in (1, 4):
        pages = tmp_path / f'pages{step}'
        ingest([source], pages, IngestConfig(workers=2, pages_per_task=step), progress=False)
        texts.append([page.text for page in PageStore.open(pages / 'pages.jsonl')])
        [words] = pages.glob('documents/*/words.jsonl')
        first = json.loads(words.read_text('utf-8').split('\n')[0])['words']
        # On the page the word is still in two lines.
        assert [word[0] for word in first[2:4]] == ['infor-', 'mation']
    assert texts[0] == texts[1]
    assert texts[0] == ['We want information for long-', 'a long-term plan',
                        'information\nof a long-term plan']


def test_the_hyphen_case(shared_dir, tmp_path):
    file = shared_dir / 'cases' / 'hyphen' / 'hyphen.pdf'
    if not file.is_file():
        pytest.skip('no cases there')
    ingest([file], tmp_path / 'pages', IngestConfig(workers=1), progress=False)
    [page] = PageStore.open(tmp_path / 'pages' / 'pages.jsonl')
    for word in ('long-term', '2019-2020', 'state-of-the-art', 'information', 'X-15', 'Covid-19',
                 'anti-inflammatory', 'extravaganza'):
        assert word in page.text.replace(',', '').replace('.', '').split()
    assert '\xad' not in page.text
