"""What fails of a page costs no other page, and what fails of the run is not a page's failure."""

import dataclasses
import json

import pytest
from PIL import Image

from vrag_jax.corpus.ingestion import folders
from vrag_jax.corpus.ingestion import page_files as images
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.ingestion.sources import Document
from vrag_jax.corpus.ingestion.worker import Worker, answer
from vrag_jax.corpus.ocr import OcrError
from vrag_jax.corpus.pages import PageStore

CONFIG = IngestConfig(dpi=72, workers=1, image_format='png', ocr='never')


@pytest.fixture
def scan(tmp_path):
    """A document of three images, of 10, 20 and 30 pixels' width."""
    files = [tmp_path / 'scan' / f'{i}.png' for i in (1, 2, 3)]
    files[0].parent.mkdir()
    for i, file in enumerate(files, start=1):
        Image.new('L', (10 * i, 9), i).save(file)
    return Document('scan', 'images', tuple(map(str, files)),
                    ('scan/1.png', 'scan/2.png', 'scan/3.png'), (1, 2, 3))


def read(worker, document, folder):
    """Reads a document as the process does; returns the reply."""
    stamps = worker.inspect(document)['stamps']
    line = {'task': 'read', 'document': dataclasses.asdict(document), 'folder': str(folder),
            'indices': [0, 1, 2], 'stamps': stamps}
    return answer({'read': worker.read}, json.dumps(line))


def test_a_strip_that_the_ocr_cannot_read_is_kept_with_its_document(tmp_path, tree):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    source, out = tmp_path / 'strips', tmp_path / 'out'
    source.mkdir()
    for i, size in enumerate([(90, 90), (90, 90), (12_000, 40)], start=1):
        Image.new('L', size, 255 - i).save(source / f'{i}.png')
    config = dataclasses.replace(CONFIG, ocr='auto')
    report = ingest([source], out, config, progress=False)
    assert report.failed == (('3.png', 'OCR fails: ResizeImgError (the page is kept)'),)
    assert (report.pages, report.ocr_pages, report.pages_without_text) == (3, 2, 0)
    assert PageStore.open(out / 'pages.jsonl').image('strips_3').size == (12_000, 40)
    before = tree(out)
    again = ingest([source], out, config, progress=False)
    assert again.pages_read == 0 and again.failed == report.failed and tree(out) == before


def test_a_page_over_which_the_ocr_fails_keeps_the_text_that_it_has(make_pdf, tmp_path):
    def fail(file):
        raise OcrError('OCR fails: too narrow')

    worker = Worker(dataclasses.replace(CONFIG, ocr='auto'))
    worker._ocr.read_lines = fail
    file = make_pdf('a.pdf', 'of a text layer, long enough', 'short', '')
    read(worker, Document('a', 'pdf', (str(file),), ('a.pdf',)), tmp_path / 'key-ocr.partial')
    folders.finish(tmp_path / 'key-ocr.partial', 3, 'pdfium')
    pages = folders.read_document(tmp_path / 'key-ocr')
    assert [(page.text, page.by_ocr, page.ocr_error) for page in pages] == [
        ('of a text layer, long enough', False, ''), ('short', False, 'OCR fails: too narrow'),
        (None, False, 'OCR fails: too narrow')]


def failing(error):
    def store_image(file, *arguments):
        if file.name == '2.png':
            raise error
        return store(file, *arguments)

    store = images.store_image
    return store_image


@pytest.mark.parametrize('error, reason', [
    (RuntimeError('bad block'), 'RuntimeError: bad block'), (AssertionError(), 'AssertionError'),
    (ValueError('is no page'), 'is no page')])
def test_whatever_a_library_raises_over_a_page_is_of_the_page(
        scan, tmp_path, monkeypatch, error, reason):
    monkeypatch.setattr(images, 'store_image', failing(error))
    assert read(Worker(CONFIG), scan, tmp_path / 'key.partial') == {}
    folders.finish(tmp_path / 'key.partial', 3, 'pillow')
    pages = folders.read_document(tmp_path / 'key')
    assert [page.error for page in pages] == ['', reason, '']
    assert [page.width for page in pages] == [10, 0, 30]


@pytest.mark.parametrize('error, reply', [
    (OSError(28, 'No space left on device'), {'error': '[Errno 28] No space left on device'}),
    (MemoryError(), {'error': 'MemoryError'}), (ImportError('no such'), {'fatal': 'no such'})])
def test_what_is_of_the_run_is_not_noted_as_a_bad_page(
        scan, tmp_path, monkeypatch, error, reply):
    monkeypatch.setattr(images, 'store_image', failing(error))
    assert read(Worker(CONFIG), scan, tmp_path / 'key.partial') == reply
    assert folders.missing_pages(tmp_path / 'key.partial', 3) == [1, 2]


def test_an_image_of_other_bytes_is_found_where_digests_are_compared(scan, tmp_path, tree):
    out, verify = tmp_path / 'out', dataclasses.replace(CONFIG, verify=True)
    ingest([tmp_path / 'scan'], out, CONFIG, progress=False)
    before = tree(out)
    file = PageStore.open(out / 'pages.jsonl').path('scan_2')
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    assert ingest([tmp_path / 'scan'], out, CONFIG, progress=False).pages_read == 0
    assert ingest([tmp_path / 'scan'], out, verify, progress=False).pages_read == 3
    assert tree(out) == before
    assert ingest([tmp_path / 'scan'], out, verify, progress=False).pages_read == 0


def test_sizes_that_were_not_noted_are_not_compared(scan, tmp_path, tree):
    out = tmp_path / 'out'
    ingest([tmp_path / 'scan'], out, CONFIG, progress=False)
    [file] = (out / 'documents').glob('*/document.json')
    content = json.loads(file.read_text())
    for page in content['pages']:
        assert page.pop('file_bytes') == (file.parent / page['file']).stat().st_size
    file.write_text(json.dumps(content))
    assert ingest([tmp_path / 'scan'], out, CONFIG, progress=False).pages_read == 0


@pytest.mark.parametrize('delete', [True, False])
def test_documents_of_a_folder_that_cannot_be_listed_stay(
        make_pdf, tmp_path, monkeypatch, tree, delete):
    source, out = tmp_path / 'in', tmp_path / 'out'
    for name in ('a.pdf', 'b/c.pdf', 'b/d/e.pdf', 'bb.pdf'):
        make_pdf(name, f'the text of {name}')
    (source / 'b' / '1.png').write_bytes(b'no image')
    config = dataclasses.replace(CONFIG, delete_missing=delete)
    ingest([source], out, config, progress=False)
    before = (out / 'pages.jsonl').read_bytes()
    real = type(source).iterdir

    def denied(path):
        if path == source / 'b':
            raise PermissionError(13, 'Permission denied', str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(type(source), 'iterdir', denied)
        (source / 'bb.pdf').unlink()
        report = ingest([source], out, config, progress=False)
        assert report.failed == (('b', 'cannot be listed: Permission denied'),)
        assert report.deleted == ('bb',) * delete
        assert report.unchanged == ('a', 'b/c', 'b/d/e', 'bb')[:3 if delete else 4]
        (source / 'a.pdf').unlink()
        with pytest.raises(FileNotFoundError, match='no PDF or image there; b: cannot be listed'):
            ingest([source], out, config, progress=False)
    for name in ('a.pdf', 'bb.pdf'):
        make_pdf(name, f'the text of {name}')
    ingest([source], out, config, progress=False)
    assert (out / 'pages.jsonl').read_bytes() == before
