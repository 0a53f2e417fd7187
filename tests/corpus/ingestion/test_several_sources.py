"""Two sources in one index: names, labels and fields of each are its own."""

import json
import shutil

import pytest
from PIL import Image

from vrag_jax.corpus.ingestion.directories import read_entries
from vrag_jax.corpus.ingestion.ingest import delete_documents, ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.records import load_questions

CONFIG = IngestConfig(dpi=72, workers=1, image_format='png', ocr='never')
CAFE, NFD = 'caf\u00e9', 'cafe\u0301'


def pages_of(directory):
    return PageStore.open(directory / 'pages.jsonl')


def fields_of(directory):
    return {page.page_id: dict(page.metadata) for page in pages_of(directory)}


@pytest.fixture
def two(make_pdf, tmp_path):
    for name in ('acme', 'beta'):
        make_pdf(f'{name}/annual.pdf', f'the annual report of {name}')
    make_pdf('beta/plan.pdf', 'the plan of beta for the year')
    (tmp_path / 'in' / 'acme' / 'metadata.csv').write_text(
        'file_name,company\nannual.pdf,Acme\nplan.pdf,Acme\n')
    return [tmp_path / 'in' / 'acme', tmp_path / 'in' / 'beta']


def test_both_of_a_name_go_in_with_their_own_fields(two, tmp_path, tree):
    out = tmp_path / 'out'
    report = ingest(two, out, CONFIG, progress=False)
    assert report.failed == () and report.unknown_metadata == ('acme/plan.pdf',)
    assert fields_of(out) == {
        'annual_1': {'company': 'Acme'}, 'beta/annual_1': {}, 'plan_1': {}}
    assert [pages_of(out)[i].text.split()[-1] for i in ('annual_1', 'beta/annual_1')] == [
        'acme', 'beta']
    # What was there before does not matter: a source alone, then both.
    ingest(two[:1], tmp_path / 'grown', CONFIG, progress=False)
    second = ingest(two, tmp_path / 'grown', CONFIG, progress=False)
    assert second.added == ('beta/annual', 'plan') and second.unchanged == ('annual',)
    assert tree(tmp_path / 'grown') == tree(out)
    # In the other order the names are others, and nothing is read again.
    turned = ingest(two[::-1], out, CONFIG, progress=False)
    assert turned.pages_read == 0
    assert fields_of(out) == {
        'acme/annual_1': {'company': 'Acme'}, 'annual_1': {}, 'plan_1': {}}


def test_messages_say_of_which_source_a_file_is(two, tmp_path):
    for source in two:
        (source / 'annual.pdf').write_bytes(b'no PDF')
        (source / 'notes.docx').touch()
    (two[1] / 'alone.pdf').write_bytes(b'no PDF')
    report = ingest(two, tmp_path / 'out', CONFIG, progress=False)
    assert [file for file, _ in report.failed] == ['acme/annual.pdf', 'alone.pdf',
                                                   'beta/annual.pdf']
    assert report.not_read == (('.docx', 2),)
    assert 'passed over: 2 files (.docx 2)' in str(report)


def test_a_file_of_two_sources_has_the_fields_of_both(make_pdf, tmp_path):
    file = make_pdf('sub/a.pdf', 'a text of twenty characters')
    folder = tmp_path / 'in'
    (folder / 'metadata.csv').write_text('file_name,x,y\nsub/a.pdf,1,1\n')
    (folder / 'sub' / 'metadata.csv').write_text('file_name,y,z\na.pdf,2,2\n')
    report = ingest([file, folder, folder / 'sub'], tmp_path / 'out', CONFIG, progress=False)
    assert report.unknown_metadata == report.failed == ()
    assert fields_of(tmp_path / 'out') == {'a_1': {'x': 1, 'y': 1, 'z': 2}}


def test_documents_that_are_in_no_source_keep_their_fields(two, tmp_path):
    keep = IngestConfig(dpi=72, workers=1, image_format='png', delete_missing=False)
    ingest(two, tmp_path / 'out', keep, progress=False)
    ingest(two[1:], tmp_path / 'out', keep, progress=False)
    # `annual` is now that of beta; fields are those of the document of this name.
    assert fields_of(tmp_path / 'out')['annual_1'] == {}
    (two[1] / 'plan.pdf').unlink()
    (two[1] / 'metadata.csv').write_text('file_name,n\nannual.pdf,1\n')
    ingest(two[1:], tmp_path / 'out', keep, progress=False)
    assert fields_of(tmp_path / 'out') == {
        'annual_1': {'n': 1}, 'beta/annual_1': {}, 'plan_1': {}}


def test_names_of_macos_are_those_of_others(make_pdf, tmp_path, tree):
    make_pdf(f'{NFD}/{NFD}.pdf', 'a text of twenty characters')
    folder = tmp_path / 'in'
    (folder / 'metadata.csv').write_text(f'file_name,n\n{CAFE}/{CAFE}.pdf,1\n', 'utf-8')
    out = tmp_path / 'out'
    report = ingest([folder], out, CONFIG, progress=False)
    assert report.added == (f'{CAFE}/{CAFE}',)
    assert fields_of(out) == {f'{CAFE}/{CAFE}_1': {'n': 1}}
    # An index of before, with the names as they were on disk, is no other document.
    before = tree(out)
    for name in ('pages.jsonl', 'documents.jsonl'):
        (out / name).write_text((out / name).read_text('utf-8').replace(CAFE, NFD), 'utf-8')
    assert set(read_entries(out)) == {f'{CAFE}/{CAFE}'}
    again = ingest([folder], out, CONFIG, progress=False)
    assert again.unchanged == (f'{CAFE}/{CAFE}',) and again.pages_read == 0
    assert tree(out) == before
    make_pdf('b.pdf', 'another text of some characters')
    ingest([folder], out, CONFIG, progress=False)
    delete_documents(out, [f'{NFD}/{NFD}'])
    assert pages_of(out).ids == ('b_1',)


def test_questions_about_two_years_find_their_pages(make_pdf, shared_dir, tmp_path):
    file = shared_dir / 'cases' / 'questions' / 'q.json'
    if not file.is_file():
        pytest.skip(f'needs {file}')
    for year in ('2023', '2024'):
        for name in ('annual', 'plan'):
            make_pdf(f'{year}/{name}.pdf', *(f'{name} {year} page {i}' for i in (1, 2, 3)))
    ingest([tmp_path / 'in'], tmp_path / 'out', CONFIG, progress=False)
    questions = load_questions(file, pages_of(tmp_path / 'out'))
    assert [(q.page_ids, q.missing_pages) for q in questions] == [
        (('2024/annual_3',), ()), (('2023/plan_1', '2023/plan_2'), ())]


def test_questions_name_documents_in_either_form(make_pdf, tmp_path):
    make_pdf(f'2024/{NFD}.pdf', 'a text of twenty characters')
    ingest([tmp_path / 'in'], tmp_path / 'out', CONFIG, progress=False)
    for form in (CAFE, NFD):
        file = tmp_path / 'q.json'
        file.write_text(json.dumps({'examples': [
            {'uid': '1', 'query': 'x', 'reference_answer': 'y', 'meta_info': {
                'file_name': f'2024/{form}.pdf', 'reference_page': [1]}},
            {'uid': '2', 'query': 'x', 'reference_answer': 'y', 'meta_info': {
                'page_ids': [f'2024/{form}_1']}}]}))
        assert [q.page_ids for q in load_questions(file, pages_of(tmp_path / 'out'))] == [
            (f'2024/{CAFE}_1',)] * 2


def test_the_case_of_two_sources(shared_dir, tmp_path):
    folder = shared_dir / 'cases' / 'two_sources'
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    report = ingest([folder / 'acme', folder / 'beta'], tmp_path / 'out', CONFIG, progress=False)
    assert report.unknown_metadata == ('acme/x.pdf',)
    fields = fields_of(tmp_path / 'out')
    assert {name for name, found in fields.items() if found} == {'acme_1'}
    assert fields['acme_1'] == {'company': 'Acme'} and len(fields) >= 4


def test_the_case_of_a_gif(shared_dir, tmp_path):
    file = shared_dir / 'cases' / 'images' / 'a.gif'
    if not file.is_file():
        pytest.skip(f'needs {file}')
    (tmp_path / 'in').mkdir()
    shutil.copy(file, tmp_path / 'in')
    shutil.copy(file.with_name('eps.jpg'), tmp_path / 'in')
    report = ingest([tmp_path / 'in'], tmp_path / 'out',
                    IngestConfig(workers=1, images='file'), progress=False)
    assert report.added == ('a',) and [name for name, _ in report.failed] == ['eps.jpg']
    assert pages_of(tmp_path / 'out').image('a_1').size == (600, 300)


def test_slides_of_the_reference_stay_as_they_are(tmp_path):
    (tmp_path / 'in').mkdir()
    slide = Image.effect_noise((667, 375), 60).resize((5334, 3000)).convert('RGB')
    slide.save(tmp_path / 'in' / 'deck_1.jpg', quality=85)
    config = IngestConfig(workers=1, images='numbered')
    ingest([tmp_path / 'in'], tmp_path / 'out', config, progress=False)
    store = pages_of(tmp_path / 'out')
    assert store.path('deck_1').read_bytes() == (tmp_path / 'in' / 'deck_1.jpg').read_bytes()
    assert store.image('deck_1').size == (5334, 3000)
