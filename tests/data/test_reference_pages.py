"""Reference pages are found however the corpus and the questions write their documents' names."""

import json
import unicodedata

import pytest
from PIL import Image

from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.pages import Page, PageStore, scan_folder
from vrag_jax.data.records import load_questions
from vrag_jax.data.reference_pages import ReferencePages


def store_of(tmp_path, *documents, pages=3):
    """A store of documents of some pages, whose files do not tell their names."""
    return PageStore(tmp_path, [
        Page(f'{document}#{n}', document, n, f'hash{i}/{n:04}.jpg', 9, 9)
        for i, document in enumerate(documents) for n in range(1, pages + 1)])


@pytest.mark.parametrize('file_name', [
    'annual.pdf', 'a/annual.pdf', './data/a/annual.pdf', '/data/x/a/annual.pdf', 'annual',
    'a\\annual.pdf', './data/elsewhere/annual.pdf', 'Annual.PDF', '../a/annual.pptx'])
def test_by_path_or_by_the_only_name(tmp_path, file_name):
    known = ReferencePages(store_of(tmp_path, 'a/annual', 'b/plan', 'annual_report'))
    assert known.find(file_name, [2]) == (['a/annual#2'], [])


@pytest.mark.parametrize('file_name, page_id', [
    ('annual.pdf', None), ('2024/annual.pdf', 'x/2024/annual#1'), ('c/annual.pdf', None),
    ('x/2023/annual.pdf', 'x/2023/annual#1'), ('data/y/2023/annual.pdf', 'y/2023/annual#1')])
def test_of_equal_names_the_longest_common_path_counts(tmp_path, file_name, page_id):
    known = ReferencePages(store_of(tmp_path, 'x/2024/annual', 'x/2023/annual', 'y/2023/annual'))
    found, missing = known.find(file_name, [1])
    assert found == ([page_id] if page_id else [])
    if not page_id:
        assert missing == [f"{file_name} page 1 (is it 'x/2023/annual' or 'x/2024/annual' or "
                           "'y/2023/annual'?)"]


def test_the_whole_path_comes_before_longer_ones(tmp_path):
    known = ReferencePages(store_of(tmp_path, 'annual', 'a/annual'))
    assert known.find('annual.pdf', [1]) == (['annual#1'], [])


@pytest.mark.parametrize('document, file_name', [
    (unicodedata.normalize('NFD', 'Übersicht'), 'Übersicht.pdf'),
    ('Übersicht', unicodedata.normalize('NFD', 'Übersicht.pdf')),
    ('Annual Report', 'annual_report.pdf'), ('annual-report', 'Annual%20Report.pdf'),
    ('a.b', 'a.b.pdf'), ('a.b', 'a.b'), ('report.pdf', 'report.pdf'), ('report.pdf', 'report'),
    ('2023.acl-long.386', '2023.acl-long.386.pdf'), ('年報', 'x/年報.pdf')])
def test_spellings(tmp_path, document, file_name):
    known = ReferencePages(store_of(tmp_path, document, 'other'))
    assert known.find(file_name, [1, 3]) == ([f'{document}#1', f'{document}#3'], [])


def test_an_exact_spelling_comes_before_a_near_one(tmp_path):
    known = ReferencePages(store_of(tmp_path, 'Plan', 'plan', 'a', 'a.b'))
    assert known.find('plan.pdf', [1])[0] == ['plan#1']
    assert known.find('a.b', [1])[0] == ['a.b#1']
    assert known.find('PLAN.pdf', [1])[0] == []


def test_what_is_not_there_is_told(tmp_path):
    known = ReferencePages(store_of(tmp_path, 'a/annual'))
    assert known.find('annual.pdf', [3, 9]) == (
        ['a/annual#3'], ["annual.pdf page 9 (of 'a/annual' there are other pages)"])
    assert known.find('plan.pdf', [1]) == ([], ['plan.pdf page 1'])


@pytest.mark.parametrize('names', [
    ['img/deck_1.jpg', 'img/deck_3.jpg', 'img/deck_10.jpg', 'img/cover.jpg'],
    ['img/deck-01.jpg', 'img/deck-03.jpg', 'img/deck-10.jpg'],
    ['deck_1_1024.jpg', 'deck_3_1024.jpg', 'deck_10_1024.jpg'],
    ['deck/1.jpg', 'deck/3.jpg', 'deck/10.jpg'],
    ['deck/page_01.jpg', 'deck/page_03.jpg', 'deck/page_10.jpg'],
    ['x/deck_1.jpg', 'x/deck_3.jpg', 'x/deck_10.jpg', 'x/b_1.jpg', 'x/b_2.jpg']])
def test_numbered_image_files_of_a_scanned_folder(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('L', (5, 7)).save(tmp_path / name)
    pages = scan_folder(tmp_path)
    known = ReferencePages(PageStore(tmp_path, pages))
    ids = [name.rpartition('.')[0] for name in names]
    assert known.find('deck.pdf', [1, 3, 10]) == (ids[:3], [])
    found, missing = known.find('deck.pdf', [2])
    assert not found and missing


def test_page_ids_tell_document_and_number_where_nothing_else_does(tmp_path):
    store = PageStore(tmp_path, [
        Page(f'deck_{n}', 'all', n + 100, f'{n:04}.jpg', 9, 9) for n in (1, 2)])
    assert ReferencePages(store).find('deck.pdf', [2]) == (['deck_2'], [])


def test_the_reference_names_pages_like_its_documents(real_pages):
    questions = json.loads((real_pages / 'questions.json').read_text('utf-8'))['examples']
    for store in (PageStore.open(real_pages / 'pages.jsonl'),
                  PageStore(real_pages / 'pages', scan_folder(real_pages / 'pages'))):
        read = load_questions(real_pages / 'questions.json', store)
        assert len(read) == len(questions) == 99
        for question, example in zip(read, questions, strict=True):
            assert question.page_ids == tuple(dict.fromkeys(
                evidence['page_id'] for evidence in example['evidence']))
            assert not question.missing_pages


def test_ingested_documents_in_folders(shared_dir, tmp_path):
    source = tmp_path / 'source'
    pdf = shared_dir / 'cases' / 'annot' / 'annot.pdf'
    if not pdf.is_file():
        pytest.skip('needs ../shared/cases')
    for name in ('2024/annual', '2023/plan'):
        (source / name).parent.mkdir(parents=True)
        (source / f'{name}.pdf').write_bytes(pdf.read_bytes())
    ingest([source], tmp_path / 'pages', IngestConfig(workers=1, ocr='never'), progress=False)
    store = PageStore.open(tmp_path / 'pages' / 'pages.jsonl')
    first, second = load_questions(shared_dir / 'cases' / 'questions' / 'q.json', store)
    pages = {name: sum(page.document == name for page in store)
             for name in ('2024/annual', '2023/plan')}
    assert min(pages.values()) >= 1
    wanted = [f'2023/plan_{n}' for n in (1, 2) if n <= pages['2023/plan']]
    assert list(second.page_ids) == wanted and len(second.missing_pages) == 2 - len(wanted)
    assert len(first.page_ids) + len(first.missing_pages) == 1


@pytest.mark.parametrize('document, file_name', [
    ('2023.acl-long.387', '2023.acl-long.386'), ('2305.99999', '2305.12345'), ('v1.2', 'v1.3'),
    ('Mr. Bean', 'Mr. Smith'), ('1706.03762', '1706'), ('report.final', 'report.draft')])
def test_what_follows_a_dot_in_a_name_is_no_ending(tmp_path, document, file_name):
    found, missing = ReferencePages(store_of(tmp_path, document)).find(file_name, [1])
    assert not found and missing


def test_a_name_that_questions_mean_in_several_folders_is_not_taken_from_another(tmp_path):
    names = ['tesla/10-K.pdf', 'ibm/10-K.pdf', './apple/10-K.pdf']
    known = ReferencePages(store_of(tmp_path, 'companies/apple/10-K'), names)
    assert known.find(names[0], [1])[0] == known.find(names[1], [1])[0] == []
    assert known.find(names[2], [1])[0] == ['companies/apple/10-K#1']


def test_reference_pages_of_no_document_are_missing(tmp_path):
    file = tmp_path / 'q.json'
    file.write_text(json.dumps([
        {'uid': 1, 'query': 'x', 'reference_answer': 'y', 'meta_info': {'reference_page': [3]}}]))
    question, = load_questions(file, store_of(tmp_path, 'a'))
    assert question.page_ids == () and len(question.missing_pages) == 1
    assert 'file_name is missing' in question.missing_pages[0]
