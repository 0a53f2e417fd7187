"""What a directory holds follows from sources and settings alone, whatever happened before."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from vrag_jax.corpus.ingestion import directories
from vrag_jax.corpus.ingestion import ingest as ingest_module
from vrag_jax.corpus.ingestion.ingest import delete_documents, ingest, remove_unused
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.pages import PageStore
from vrag_jax.corpus.words import page_words

CONFIG = IngestConfig(dpi=72, workers=1, image_format='png', ocr='never')


def pages_of(directory):
    return PageStore.open(directory / 'pages.jsonl')


def test_pdfs_and_images_become_pages(make_pdf, tmp_path):
    source, out = tmp_path / 'in', tmp_path / 'out'
    make_pdf('r/annual.pdf', 'the first page is here', 'second page of it here')
    (source / 'scan').mkdir()
    for name, grey in (('10.png', 10), ('2.png', 2)):
        Image.new('L', (30, 20), grey).save(source / 'scan' / name)
    frames = [Image.new('RGB', (16, 12), (i, 0, 0)) for i in (7, 8)]
    frames[0].save(source / 'fax.tiff', save_all=True, append_images=frames[1:])
    (source / 'metadata.csv').write_text('file_name,page,year\nr/annual.pdf,,2020\n'
                                         'r/annual.pdf,2,2021\nscan/10.png,,1999\nx.pdf,,1\n'
                                         'r/annual.pdf,3,2022\n')
    report = ingest([source], out, CONFIG, progress=False)
    assert report.added == ('fax', 'r/annual', 'scan') and report.changed
    assert (report.pages, report.pages_read, report.pages_without_text) == (6, 6, 4)
    assert report.unknown_metadata == ('r/annual.pdf, page 3', 'x.pdf') and report.failed == ()
    store = pages_of(out)
    assert store.ids == ('fax_1', 'fax_2', 'r/annual_1', 'r/annual_2', 'scan_1', 'scan_2')
    assert [page.text for page in store] == [
        '', '', 'the first page is here', 'second page of it here', '', '']
    assert [page.metadata for page in store] == [
        {}, {}, {'year': 2020}, {'year': 2021}, {}, {'year': 1999}]
    assert store.find('r/annual', 2) == 'r/annual_2'
    assert [store.image(i).getpixel((0, 0))[0] for i in store.ids] == [7, 8, 255, 255, 2, 10]
    assert store.image('r/annual_1').size == (200, 100)
    words = page_words(store, 'r/annual_2')
    assert [word.text for word in words] == 'second page of it here'.split()
    assert page_words(store, 'scan_1') is None


def edit(make_pdf, source):
    make_pdf('b.pdf', 'the second text is another one')
    (source / 'c.pdf').unlink()
    make_pdf('d/d.pdf', 'the fourth text is this one')
    Image.new('L', (9, 9), 3).save(source / 'scan' / '3.png')


@pytest.fixture
def sources(make_pdf, tmp_path):
    make_pdf('a.pdf', 'the first text is this one', 'and its second page is here')
    make_pdf('b.pdf', 'the second text is this one')
    make_pdf('c.pdf', 'the third text is this one')
    (tmp_path / 'in' / 'scan').mkdir()
    for i in (1, 2):
        Image.new('L', (9, 9), i).save(tmp_path / 'in' / 'scan' / f'{i}.png')
    return tmp_path / 'in'


def test_only_what_has_changed_is_read_and_the_result_is_that_of_a_new_ingestion(
        make_pdf, sources, tmp_path, tree):
    out = tmp_path / 'out'
    ingest([sources], out, CONFIG, progress=False)
    again = ingest([sources], out, CONFIG, progress=False)
    assert again.unchanged == ('a', 'b', 'c', 'scan') and not again.changed
    assert again.pages_read == 0 and again.pages == 6
    edit(make_pdf, sources)
    report = ingest([sources], out, CONFIG, progress=False)
    assert report.added == ('d/d',) and report.deleted == ('c',)
    assert report.replaced == ('b', 'scan') and report.unchanged == ('a',)
    assert report.pages_read == 1 + 1 + 1 and report.pages == 7
    fresh = tmp_path / 'fresh'
    other_order = dataclasses.replace(CONFIG, workers=2, pages_per_task=1)
    ingest([sources], fresh, other_order, progress=False)
    assert tree(out) == tree(fresh)
    assert len(list((out / 'documents').iterdir())) == 4


def test_readers_of_the_old_pages_find_their_images_until_they_are_removed(
        make_pdf, sources, tmp_path, tree):
    out = tmp_path / 'out'
    ingest([sources], out, CONFIG, progress=False)
    old = pages_of(out)
    edit(make_pdf, sources)
    ingest([sources], out, CONFIG, progress=False, keep_unused=True)
    assert all(old.path(page_id).is_file() for page_id in old.ids)
    remove_unused(out)
    assert all(old.path(page_id).is_file() for page_id in old.ids)
    gone, stays = old.path('c_1'), old.path('a_1')
    del old
    remove_unused(out)
    assert not gone.exists() and stays.exists()
    fresh = tmp_path / 'fresh'
    ingest([sources], fresh, CONFIG, progress=False)
    assert tree(out) == tree(fresh)


def test_documents_can_be_deleted_and_kept(sources, tmp_path):
    out = tmp_path / 'out'
    ingest([sources], out, CONFIG, progress=False)
    with pytest.raises(KeyError, match="'x'"):
        delete_documents(out, ['a', 'x'])
    delete_documents(out, ['a', 'scan'])
    assert pages_of(out).ids == ('b_1', 'c_1')
    assert len(list((out / 'documents').iterdir())) == 2
    with pytest.raises(ValueError, match='no page would be left'):
        delete_documents(out, ['b', 'c'])
    (sources / 'b.pdf').unlink()
    keep = dataclasses.replace(CONFIG, delete_missing=False)
    report = ingest([sources], out, keep, progress=False)
    assert report.added == ('a', 'scan') and report.unchanged == ('b', 'c')
    assert len(pages_of(out)) == 6


def test_the_wrong_sources_delete_nothing(sources, tmp_path, tree):
    out = tmp_path / 'out'
    ingest([sources], out, CONFIG, progress=False)
    before = tree(out)
    with pytest.raises(ValueError, match="3 of its 4 documents are in no source, e.g. 'b'"):
        ingest([sources / 'a.pdf'], out, CONFIG, progress=False)
    with pytest.raises(FileNotFoundError, match='no PDF or image'):
        (tmp_path / 'empty').mkdir()
        ingest([tmp_path / 'empty'], out, CONFIG, progress=False)
    assert tree(out) == before
    meant = dataclasses.replace(CONFIG, most_deleted=0.75)
    assert ingest([sources / 'a.pdf'], out, meant, progress=False).deleted == ('b', 'c', 'scan')


def test_bad_files_are_reported_and_the_rest_goes_in(make_pdf, sources, tmp_path):
    (sources / 'b.pdf').write_bytes(b'no PDF')
    (sources / 'scan' / '2.png').write_bytes(b'no image')
    make_pdf('empty.pdf')
    (sources / 'fax.tif').write_bytes(b'no image')
    (sources / 'c').mkdir()
    Image.new('L', (9, 9)).save(sources / 'c' / '1.png')
    out = tmp_path / 'out'
    report = ingest([sources], out, CONFIG, progress=False)
    assert report.added == ('a', 'c', 'scan') and report.pages == 4
    assert [file for file, _ in report.failed] == [
        'b.pdf', 'c', 'empty.pdf', 'fax.tif', 'scan/2.png']
    assert 'PDF' in report.failed[0][1] and 'taken by c.pdf' in report.failed[1][1]
    assert pages_of(out).ids == ('a_1', 'a_2', 'c_1', 'scan_1')
    lines = [json.loads(x) for x in (out / 'failures.jsonl').read_text().splitlines()]
    assert [(x['file'], x['reason']) for x in lines] == list(report.failed)
    assert 'cannot be read: b.pdf' in str(report)
    make_pdf('b.pdf', 'mended')
    assert ingest([sources], out, CONFIG, progress=False).added == ('b',)


def test_bad_images_right_in_a_source_are_named(tmp_path):
    source = tmp_path / 'photos'
    source.mkdir()
    (source / '1.png').write_bytes(b'no image')
    Image.new('L', (9, 9)).save(source / '2.png')
    report = ingest([source], tmp_path / 'out', CONFIG, progress=False)
    assert [file for file, _ in report.failed] == ['1.png'] and report.added == ('photos',)


def test_an_image_that_cannot_be_opened_does_not_take_its_folder_with_it(sources, tmp_path):
    (sources / 'scan' / '3.jpg').symlink_to(tmp_path / 'nothing.jpg')
    report = ingest([sources], tmp_path / 'out', CONFIG, progress=False)
    assert {'scan_1', 'scan_2'} <= set(pages_of(tmp_path / 'out').ids)
    assert [name for name, _ in report.failed] == ['scan/3.jpg']


def test_what_libraries_raise_for_broken_files_is_reported(sources, tmp_path):
    file = sources / 'scan' / '3.png'
    Image.new('L', (9, 9)).save(file, 'TIFF')
    content = bytearray(file.read_bytes())
    content[72] = 5  # Pillow takes the type of this tag for a fraction: a TypeError.
    file.write_bytes(content)
    with pytest.raises(TypeError), Image.open(file) as image:
        image.load()
    Image.new('F', (9, 9), 0.5).save(sources / 'float.tif')
    report = ingest([sources], tmp_path / 'out', CONFIG, progress=False)
    assert {'scan_1', 'scan_2', 'float_1'} <= set(pages_of(tmp_path / 'out').ids)
    [(name, reason)] = report.failed
    assert name == 'scan/3.png' and 'cannot be read as an image' in reason
    assert pages_of(tmp_path / 'out').image('float_1').getpixel((0, 0)) == (128, 128, 128)


def test_pages_of_a_file_that_changes_while_it_is_read_are_never_those_of_another(
        make_pdf, sources, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    before = (sources / 'a.pdf').read_bytes()
    inspect = ingest_module._Run.inspect

    def change_then(run, documents, pool):
        inspect(run, documents, pool)
        make_pdf('a.pdf', 'bravo first', 'bravo second')

    with monkeypatch.context() as patch:
        patch.setattr(ingest_module._Run, 'inspect', change_then)
        report = ingest([sources], out, CONFIG, progress=False, keep_unused=True)
    assert report.failed == (('a.pdf', 'has been changed while it was read'),)
    (sources / 'a.pdf').write_bytes(before)
    ingest([sources], out, CONFIG, progress=False)
    assert pages_of(out)['a_1'].text == 'the first text is this one'


def test_a_kill_between_the_lists_loses_no_page_of_others(make_pdf, sources, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    ingest([sources], out, CONFIG, progress=False)
    make_pdf('a.pdf', 'alpha of another version')

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(directories, '_write_lines', killed)
        ingest([sources], out, CONFIG, progress=False)
    delete_documents(out, ['c'])
    assert pages_of(out)['a_1'].text == 'alpha of another version'
    assert 'c_1' not in pages_of(out).ids
    assert pages_of(out).image('a_1').size == (200, 100)


@pytest.mark.parametrize('damage', ['image', 'bytes', 'list'])
def test_a_document_of_which_something_is_missing_is_read_again(sources, tmp_path, tree, damage):
    out = tmp_path / 'out'
    ingest([sources], out, CONFIG, progress=False)
    before = tree(out)
    file = out / pages_of(out)['b_1'].file
    if damage == 'image':
        file.unlink()
    elif damage == 'bytes':
        file.write_bytes(file.read_bytes()[:100])
    else:
        (file.parent / 'document.json').write_text('{"pages": [')
    (out / 'pages.jsonl.77.partial').write_text('of a run that was killed')
    report = ingest([sources], out, CONFIG, progress=False)
    assert report.pages_read == 1 and tree(out) == before


@pytest.mark.parametrize('name', ['documents.jsonl', 'ingestion.json'])
def test_a_damaged_list_is_named(sources, tmp_path, name):
    ingest([sources], tmp_path / 'out', CONFIG, progress=False)
    (tmp_path / 'out' / name).write_text('{"document": ')
    with pytest.raises(ValueError, match=f'{name}: damaged'):
        ingest([sources], tmp_path / 'out', CONFIG, progress=False)


def test_of_a_document_that_has_become_bad_the_old_pages_stay(sources, tmp_path):
    out = tmp_path / 'out'
    ingest([sources], out, CONFIG, progress=False)
    (sources / 'b.pdf').write_bytes(b'no PDF')
    report = ingest([sources], out, CONFIG, progress=False)
    assert report.failed[0][0] == 'b.pdf' and 'pages of before are kept' in report.failed[0][1]
    assert pages_of(out)['b_1'].text == 'the second text is this one'
    assert pages_of(out).image('b_1').size == (200, 100)


def test_nothing_but_bad_files_is_an_error(tmp_path):
    (tmp_path / 'a.pdf').write_bytes(b'no PDF')
    with pytest.raises(ValueError, match='no document can be read: a.pdf'):
        ingest([tmp_path / 'a.pdf'], tmp_path / 'out', CONFIG, progress=False)


def test_documents_of_the_same_content_are_read_once_and_told(make_pdf, tmp_path):
    for name in ('b.pdf', 'a.pdf', 'c.pdf'):
        make_pdf(name, 'the same text' if name != 'c.pdf' else 'another text')
    out = tmp_path / 'out'
    report = ingest([tmp_path / 'in'], out, CONFIG, progress=False)
    assert report.same_content == (('a', 'b'),) and report.pages_read == 2
    store = pages_of(out)
    assert store.ids == ('a_1', 'b_1', 'c_1') and store['a_1'].file == store['b_1'].file
    delete_documents(out, ['a'])
    assert pages_of(out).image('b_1').size == (200, 100)


@pytest.mark.parametrize('field, value', [
    ('dpi', 100), ('image_format', 'webp'), ('quality', 50), ('max_pixels', 1000)])
def test_an_index_has_one_way_of_rendering(sources, tmp_path, field, value):
    out = tmp_path / 'out'
    ingest([sources], out, CONFIG, progress=False)
    other = dataclasses.replace(CONFIG, **{field: value})
    with pytest.raises(ValueError) as error:
        ingest([sources], out, other, progress=False)
    assert f'{field} {getattr(CONFIG, field)!r}, not {value!r}' in str(error.value)


def test_a_manifest_of_somebody_else_is_not_overwritten(sources, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'pages.jsonl').write_text('mine')
    with pytest.raises(ValueError, match='not of an ingestion'):
        ingest([sources], out, CONFIG, progress=False)
    assert (out / 'pages.jsonl').read_text() == 'mine'


def test_metadata_alone_needs_no_reading(sources, tmp_path):
    out = tmp_path / 'out'
    ingest([sources], out, CONFIG, progress=False)
    (sources / 'metadata.jsonl').write_text('{"file_name": "a.pdf", "year": 7}\n')
    report = ingest([sources], out, CONFIG, progress=False)
    assert report.pages_read == 0 and not report.changed
    assert [page.metadata for page in pages_of(out)][:3] == [{'year': 7}, {'year': 7}, {}]


def test_two_ingestions_do_not_share_a_directory(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(directories, '_LOCK_WAIT_S', 0.3)
    out = tmp_path / 'out'
    out.mkdir()
    with directories.locked(out), pytest.raises(RuntimeError, match='another ingestion'):
        ingest([sources], out, CONFIG, progress=False)
    ingest([sources], out, CONFIG, progress=False)


def test_the_index_may_lie_inside_of_its_source(sources, tree):
    out = sources / 'index'
    ingest([sources], out, CONFIG, progress=False)
    before = tree(out)
    assert not ingest([sources], out, CONFIG, progress=False).changed
    assert tree(out) == before


def test_pages_without_text_are_read_by_ocr_when_it_is_wanted(make_pdf, tmp_path):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    make_pdf('a.pdf', 'a text of twenty characters')
    text = tmp_path / 'text.pdf'
    shutil.copy(make_pdf('scan.pdf', 'QUARTERLY REPORT 1987', size=(300, 100)), text)
    out = tmp_path / 'out'
    # The page of a scanner: an image of text in a PDF without a text layer.
    plain = dataclasses.replace(CONFIG, dpi=144)
    ingest([text], tmp_path / 'image', plain, progress=False)
    image = pages_of(tmp_path / 'image').image('text_1')
    image.save(tmp_path / 'in' / 'scan.pdf', resolution=144)
    first = ingest([tmp_path / 'in'], out, plain, progress=False)
    assert first.unread == (('scan.pdf, page 1', 'has no text layer'),)
    assert "ocr='auto'" in str(first) and 'not read by OCR: scan.pdf, page 1: has no' in str(first)
    assert pages_of(out)['scan_1'].text == '' and page_words(pages_of(out), 'scan_1') is None
    auto = dataclasses.replace(plain, ocr='auto')
    report = ingest([tmp_path / 'in'], out, auto, progress=False)
    assert (report.replaced, report.unchanged) == (('scan',), ('a',))
    assert (report.ocr_pages, report.pages_without_text, report.pages_read) == (1, 0, 1)
    store = pages_of(out)
    assert store['scan_1'].text == 'QUARTERLY REPORT 1987'
    words = page_words(store, 'scan_1')
    assert [word.text for word in words] == ['QUARTERLY', 'REPORT', '1987']
    ink = np.asarray(store.image('scan_1').convert('L')) < 128
    for word in words:
        assert ink[word.box[1]:word.box[3], word.box[0]:word.box[2]].sum() > 0.1 * ink.sum()
    assert not ingest([tmp_path / 'in'], out, auto, progress=False).changed


def test_without_the_ocr_package_the_extra_is_named(tmp_path, monkeypatch):
    Image.new('L', (9, 9)).save(tmp_path / 'a.png')
    (tmp_path / 'rapidocr.py').write_text('raise ImportError("not installed")')
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    with pytest.raises(ImportError, match=r'\[ocr\]'):
        ingest([tmp_path / 'a.png'], tmp_path / 'out', dataclasses.replace(CONFIG, ocr='always'),
               progress=False)
