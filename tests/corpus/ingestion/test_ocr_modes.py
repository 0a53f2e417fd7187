"""What is read by OCR in the modes 'auto', 'always' and 'never', and what is said of the rest."""

import dataclasses
import json
import sys

import pytest
from PIL import Image, ImageDraw, ImageFont

from vrag_jax.config import ConfigError, parse
from vrag_jax.corpus import ocr
from vrag_jax.corpus.ingestion import ingest as ingest_module
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.pages import PageStore
from vrag_jax.corpus.words import page_words
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import build_index

AUTO = IngestConfig(dpi=144, workers=1, ocr='auto')
NEVER, ALWAYS = (dataclasses.replace(AUTO, ocr=mode) for mode in ('never', 'always'))
LINES = ('Quarterly melon production of Zanzibar', 'amounted to 7315 tonnes in March,',
         'more than ever in the archipelago.')
STAMP = 'Downloaded from an archive on 2 March 2024 by reader 17'
MORE = 'shows text that is not in its text layer'


def scan(size=(1200, 800), lines=LINES, at=(100, 200)):
    """An image of lines of text."""
    image = Image.new('L', size, 250)
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((at[0], at[1] + 80 * i), line, 20, ImageFont.load_default(40))
    return image


def pdf_of(file, image, layer='', size=(600, 400)):
    """A PDF page of an image with text over it: PDF operators of a text object in font F1."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = image.convert('L').tobytes()
    content = f'q {size[0]} 0 0 {size[1]} 0 0 cm /I Do Q BT {layer} ET'.encode()
    objects = [
        b'<< /Type /Catalog /Pages 2 0 R >>', b'<< /Type /Pages /Kids [3 0 R] /Count 1 >>',
        f'<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]} {size[1]}] /Contents 4 0 R '
        f'/Resources << /XObject << /I 5 0 R >> /Font << /F1 << /Type /Font /Subtype /Type1 '
        f'/BaseFont /Helvetica >> >> >> >>'.encode(),
        b'<< /Length %d >>\nstream\n%s\nendstream' % (len(content), content),
        b'<< /Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray '
        b'/BitsPerComponent 8 /Length %d >>\nstream\n%s\nendstream' % (
            image.width, image.height, len(data), data)]
    body = b'%PDF-1.4\n'
    for number, item in enumerate(objects, start=1):
        body += b'%d 0 obj\n%s\nendobj\n' % (number, item)
    file.write_bytes(body + b'trailer\n<< /Size 6 /Root 1 0 R >>\n%%EOF')
    return file


def write(text, x, y, size=10):
    return f'/F1 {size} Tf 1 0 0 1 {x} {y} Tm ({text}) Tj'


HEADERS = {
    'header': write(STAMP, 50, 380),
    'bates': write('ACME-000417', 500, 10) + ' ' + write('CONFIDENTIAL', 20, 10),
    'page_number': write('Page 17 of 312, volume 2', 280, 10),
    'watermark': '0.9 g /F1 60 Tf 0.7 0.7 -0.7 0.7 150 60 Tm (DRAFT COPY) Tj '
                 + '0.4 g ' + write('not for circulation', 20, 10),
}


@pytest.mark.parametrize('name', HEADERS)
def test_a_scan_under_a_little_text_is_not_taken_as_read(tmp_path, name):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    file = pdf_of(tmp_path / 'in' / 'a.pdf', scan(), HEADERS[name])
    never = ingest([file], tmp_path / 'never', NEVER, progress=False)
    [(where, reason)] = never.unread
    assert where == 'a.pdf, page 1' and reason == MORE and never.ocr_pages == 0
    assert f'not read by OCR: a.pdf, page 1: {MORE}' in str(never)
    if name in ('bates', 'page_number'):  # Read as a header is.
        return
    report = ingest([file], tmp_path / 'auto', AUTO, progress=False)
    assert (report.ocr_pages, report.unread) == (1, ())
    store = PageStore.open(tmp_path / 'auto' / 'pages.jsonl')
    [page] = store
    layer = PageStore.open(tmp_path / 'never' / 'pages.jsonl')['a_1'].text
    # The layer stays as it is; OCR adds what it lacks, and nothing twice.
    assert page.text.startswith(layer)
    added = page.text[len(layer):].strip().split('\n')
    if name == 'header':
        assert added == [*LINES]
    # Where the watermark crosses letters, these are read as others.
    assert len(added) >= 3 and LINES[0][:29] in page.text and LINES[1] in added
    words = page_words(store, 'a_1')
    [melon] = [word for word in words if word.text == 'melon']
    assert 280 < melon.box[0] < melon.box[2] < 520 and 195 < melon.box[1] < melon.box[3] < 260


def test_two_scans_of_half_a_page_are_read_beside_a_caption(tmp_path):
    halves = scan(lines=LINES[:1], at=(60, 120))
    halves.paste(scan(size=(1200, 380), lines=('The 4471 herons of Merwehaven',), at=(60, 150)),
                 (0, 420))
    file = pdf_of(tmp_path / 'in' / 'a.pdf', halves, write('Two letters of 1987, kept', 50, 205))
    assert ingest([file], tmp_path / 'out', NEVER, progress=False).unread == (
        ('a.pdf, page 1', MORE),)


def test_a_photograph_under_text_is_not_taken_for_a_scan(tmp_path):
    """Waves, steps and noise, as in pictures, beside a text that is all there."""
    import numpy as np

    y, x = np.mgrid[:800, :1200]
    noise = np.random.default_rng(0).normal(0, 25, (800, 1200))
    photograph = 120 + 60 * np.sin(x / 37 + y / 91) + 40 * np.sign(np.sin(x / 90)) + noise
    photograph[:180] = 255
    image = Image.fromarray(np.clip(photograph, 0, 255).astype(np.uint8))
    file = pdf_of(tmp_path / 'in' / 'a.pdf', image, write(STAMP, 50, 350, 16))
    report = ingest([file], tmp_path / 'out', NEVER, progress=False)
    assert report.unread == () and 'not read' not in str(report)


def three_pages(folder):
    """One document of images needs OCR; one page of a PDF of three does; a text needs none."""
    pdf_of(folder / 'stamped.pdf', scan(), HEADERS['header'])
    pdf_of(folder / 'text.pdf', Image.new('L', (60, 40), 255), write(STAMP, 50, 300, 16))
    (folder / 'images').mkdir()
    scan(size=(900, 400), at=(30, 60)).save(folder / 'images' / '1.png')


def test_any_way_from_mode_to_mode_leaves_what_the_last_one_makes(tmp_path, tree):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    source, out = tmp_path / 'in', tmp_path / 'out'
    three_pages(source)
    modes = {'never': NEVER, 'auto': AUTO, 'always': ALWAYS}
    fresh = {}
    for name, config in modes.items():
        ingest([source], tmp_path / name, config, progress=False)
        fresh[name] = tree(tmp_path / name)
    texts = {name: {page.page_id: page.text for page in PageStore.open(
        tmp_path / name / 'pages.jsonl')} for name in modes}
    assert texts['never']['images_1'] == '' and texts['auto']['images_1'] == '\n'.join(LINES)
    assert texts['never']['text_1'] == texts['auto']['text_1'] == STAMP
    assert 'Zanzibar' in texts['always']['stamped_1'] and 'archive' in texts['always']['stamped_1']
    read = {}
    before = ''
    for name in ('never', 'auto', 'always', 'auto', 'never', 'always', 'never'):
        report = ingest([source], out, modes[name], progress=False)
        assert tree(out) == fresh[name], (before, name)
        read[before, name] = report.pages_read
        assert ingest([source], out, modes[name], progress=False).pages_read == 0
        before = name
    # The image has no text layer: 'always' reads it as 'auto' does.
    assert read == {('', 'never'): 3, ('never', 'auto'): 2, ('auto', 'always'): 2,
                    ('always', 'auto'): 2, ('auto', 'never'): 2, ('never', 'always'): 3,
                    ('always', 'never'): 3}


def test_pages_of_a_document_that_need_no_ocr_are_not_read_again(make_pdf, tmp_path):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    file = make_pdf('a.pdf', 'a text of more than twenty', '', 'another text of some length',
                    size=(400, 100))
    assert ingest([file], tmp_path / 'out', NEVER, progress=False).pages_read == 3
    report = ingest([file], tmp_path / 'out', AUTO, progress=False)
    assert (report.pages_read, report.ocr_pages, report.replaced) == (1, 1, ('a',))
    store = PageStore.open(tmp_path / 'out' / 'pages.jsonl')
    assert [word.text for word in page_words(store, 'a_3')] == 'another text of some length'.split()
    assert ingest([file], tmp_path / 'out', NEVER, progress=False).pages_read == 1


def test_without_the_extra_auto_says_what_is_missing_and_always_fails(
        tmp_path, monkeypatch, tree):
    source, out = tmp_path / 'in', tmp_path / 'out'
    three_pages(source)
    installed = ocr.missing_extra() == ''
    if installed:
        ingest([source], tmp_path / 'read', AUTO, progress=False)
        read = tree(tmp_path / 'read')
    monkeypatch.setitem(sys.modules, 'rapidocr', None)
    report = ingest([source], out, AUTO, progress=False)
    assert len(report.unread) == 2 and report.ocr_pages == 0
    assert str(report).count("pip install 'vrag-jax[ocr]'") == 1
    with pytest.raises(ImportError, match=r"ocr='always': .*vrag-jax\[ocr\]"):
        ingest([source], out, ALWAYS, progress=False)
    assert 'vrag-jax' not in str(ingest([source], out, NEVER, progress=False))
    if installed:  # What was read where it is installed stays.
        report = ingest([source], tmp_path / 'read', AUTO, progress=False)
        assert report.unread == () and report.pages_read == 0 and tree(tmp_path / 'read') == read


def test_an_index_of_before_with_ocr_below_still_opens(make_pdf, tmp_path, tree):
    file = make_pdf('a.pdf', 'a text of more than twenty')
    ingest([file], tmp_path / 'out', NEVER, progress=False)
    before = tree(tmp_path / 'out')
    settings = tmp_path / 'out' / 'ingestion.json'
    settings.write_text(json.dumps({**json.loads(settings.read_text()), 'ocr_below': 20}))
    assert ingest([file], tmp_path / 'out', NEVER, progress=False).pages == 1
    assert tree(tmp_path / 'out') == before
    with pytest.raises(ValueError, match="dpi 144, not 72"):
        ingest([file], tmp_path / 'out', dataclasses.replace(NEVER, dpi=72), progress=False)


@pytest.mark.parametrize('mode', [True, 'True', 'sometimes'])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=r"ocr must be one of \('auto', 'always', 'never'\)"):
        IngestConfig(ocr=mode)


def test_the_flag_of_own_manifests_asks_for_the_extra(tmp_path, monkeypatch):
    file = pdf_of(tmp_path / 'in' / 'a.pdf', scan(), HEADERS['header'])

    def config(**ingestion):
        return parse(RunConfig, {'task': 'build_index', 'data': {'source': 'files'}, 'retrieval': {
            'sources': str(file), 'ocr': True, 'ingestion': {'workers': 1, **ingestion}}})

    with pytest.raises(ConfigError, match="ocr=True and ingestion.ocr='never'"):
        config(ocr='never')
    monkeypatch.setitem(sys.modules, 'rapidocr', None)
    with pytest.raises(SystemExit, match=r'ingestion: .*vrag-jax\[ocr\]'):
        build_index.run(RunContext(config(), tmp_path / 'work'))
    assert not ingest_module.directories.read_entries(tmp_path / 'work' / 'pages')


CASES = {
    'garbled/garbled.pdf': (('The harbour dues of Rotterdam were raised', '402 million euros',
                             'fiscal year of the dredging works'), 'letters that no language'),
    'mixed/stamped.pdf': (('Downloaded from archive.example.org', 'melon production of Zanzibar',
                           '7315 tonnes', 'archipelago'), MORE),
    'mixed/plain.pdf': (('lighthouse keepers', 'of the northern coast'), 'has no text layer'),
}


@pytest.mark.parametrize('name', CASES)
def test_cases(shared_dir, tmp_path, name):
    file = shared_dir / 'cases' / name
    if not file.is_file():
        pytest.skip(f'{file} is not there')
    seen, said = CASES[name]
    [(where, reason)] = ingest([file], tmp_path / 'never', NEVER, progress=False).unread
    assert where == f'{file.name}, page 1' and said in reason
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    report = ingest([file], tmp_path / 'auto', AUTO, progress=False)
    assert report.ocr_pages == 1 and report.unread == ()
    [page] = PageStore.open(tmp_path / 'auto' / 'pages.jsonl')
    for words in seen:
        assert words in page.text
    assert 'ŔŨť' not in page.text
