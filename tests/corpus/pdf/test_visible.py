"""Text that nobody sees is not in the text of a page; all that is seen stays."""

import zlib

import numpy as np
import pytest

from tests.corpus.documents import stream
from vrag_jax.corpus.pdf.document import Pdf

MANY = 16_000_000
SEEN = 'BT /F1 12 Tf 50 250 Td (Tulips in the garden) Tj ET '


def read(file, number=1):
    with Pdf(file) as pdf:
        page = pdf.read(number, 144, MANY)
    assert ' '.join(page.text.split()) == ' '.join(word.text for word in page.words)
    return ' '.join(page.text.split())


def scan(width=600, height=450, text_at=()):
    """Grey levels of a scanned page, dark strokes where there is text."""
    levels = np.full((height, width), 235, np.uint8)
    for x1, y1, x2, y2 in text_at:
        for x in range(x1, x2, 6):
            levels[y1:y2, x:x + 3] = 30
    return levels


def image_object(levels):
    return stream(zlib.compress(levels.tobytes()),
                  f'/Type /XObject /Subtype /Image /Width {levels.shape[1]} '
                  f'/Height {levels.shape[0]} /ColorSpace /DeviceGray /BitsPerComponent 8 '
                  '/Filter /FlateDecode')


LAYERS = dict(
    catalog='/OCProperties << /OCGs [4 0 R] /D << /OFF [4 0 R] >> >>',
    resources='/Properties << /MC0 4 0 R >> /ExtGState << /G0 << /ca 0 >> >>',
    more=['<< /Type /OCG /Name (L) >>'])


@pytest.mark.parametrize('hidden', [
    'BT 3 Tr 50 200 Td (kerfuffle) Tj ET',
    '1 g BT 50 200 Td (kerfuffle) Tj ET',
    '0.99 g BT 50 200 Td (kerfuffle) Tj ET',
    '0.5 0.8 0.9 rg 40 190 200 40 re f BT 50 200 Td (kerfuffle) Tj ET',
    '/OC /MC0 BDC BT 50 200 Td (kerfuffle) Tj ET EMC',
    'q /G0 gs BT 50 200 Td (kerfuffle) Tj ET Q',
    'q 0 0 20 20 re W n BT 50 200 Td (kerfuffle) Tj ET Q',
    'BT 50 200 Td (kerfuffle) Tj ET 0 g 40 190 200 40 re f',
    'BT 50 200 Td (kerfuffle) Tj ET 1 g 40 190 200 40 re f',
    'BT /F1 0.01 Tf 50 200 Td (kerfuffle) Tj ET',
    'BT 500 200 Td (kerfuffle) Tj ET',
    'BT 50 -40 Td (kerfuffle) Tj ET',
    # In the place of text that is seen.
    '/OC /MC0 BDC BT 50 250 Td (kerfuffle shenanigans) Tj ET EMC',
    '/OC /MC0 BDC 0 g 40 190 200 40 re f EMC 1 g BT 50 200 Td (kerfuffle) Tj ET'])
def test_what_nobody_sees_is_left_out(page_pdf, hidden):
    assert read(page_pdf(SEEN + hidden, **LAYERS)) == 'Tulips in the garden'


@pytest.mark.parametrize('shown', [
    '0.93 g BT 50 200 Td (kerfuffle) Tj ET',
    '0 g 40 190 200 40 re f 1 g BT 50 200 Td (kerfuffle) Tj ET',
    '0 g 40 190 200 40 re f 0.1 g BT 50 200 Td (kerfuffle) Tj ET',
    '1 0 0 rg 40 190 200 40 re f 0 0.5 0 rg BT 50 200 Td (kerfuffle) Tj ET',
    '2 w 1 Tr BT 50 200 Td (kerfuffle) Tj ET',
    'BT /F1 4 Tf 50 200 Td (kerfuffle) Tj ET',
    'BT 50 200 Td (kerfuffle) Tj ET BT 50.3 200 Td (kerfuffle) Tj ET',
    # Drawn, covered, and drawn again.
    'BT 50 200 Td (kerfuffle) Tj ET 0.8 g 40 190 200 40 re f 0 g BT 50 200 Td (kerfuffle) Tj ET',
    'BT 3 Tr 50 200 Td (kerfuffle) Tj ET BT 0 Tr 50 200 Td (kerfuffle) Tj ET'])
def test_what_is_seen_stays_once(page_pdf, shown):
    assert read(page_pdf(SEEN + shown, **LAYERS)) == 'Tulips in the garden kerfuffle'


def test_what_is_partly_outside_is_there_in_part(page_pdf):
    entries = '/CropBox [0 0 95 300]'
    assert read(page_pdf('BT /F1 12 Tf 50 250 Td (Tulips garden) Tj ET', page=entries)) == (
        'Tulips g')


@pytest.mark.parametrize('scale', ['400 0 0 300 0 0', '-400 0 0 300 400 0'])
def test_the_layer_of_an_ocr_stays(page_pdf, scale):
    strokes = [(75, 55, 260, 80)] if scale[0] != '-' else [(340, 55, 525, 80)]
    options = dict(resources='/XObject << /Im 4 0 R >>',
                   more=[image_object(scan(text_at=strokes))])
    word = 'BT /F1 18 Tf %d Tr 50 250 Td (Tulips grow) Tj ET '
    nowhere = 'BT /F1 18 Tf %d Tr 50 100 Td (kerfuffle) Tj ET '
    picture = f'q {scale} cm /Im Do Q '
    # On top of the scan, invisible; and beneath it.
    assert read(page_pdf(picture + word % 3 + nowhere % 3, **options)) == 'Tulips grow'
    assert read(page_pdf(word % 0 + nowhere % 0 + picture, **options)) == 'Tulips grow'


def test_text_beneath_a_picture_is_hidden_unless_the_page_is_a_scan(page_pdf):
    options = dict(resources='/XObject << /Im 4 0 R >>',
                   more=[image_object(scan(text_at=[(0, 0, 600, 450)]))])
    text = 'BT /F1 12 Tf 60 200 Td (kerfuffle) Tj ET q 100 0 0 40 50 190 cm /Im Do Q '
    assert read(page_pdf(SEEN + text, **options)) == 'Tulips in the garden'


def test_text_over_a_photo_stays(page_pdf):
    levels = np.random.default_rng(0).integers(0, 256, (90, 120), np.uint8)
    options = dict(resources='/XObject << /Im 4 0 R >>', more=[image_object(levels)])
    text = 'q 400 0 0 300 0 0 cm /Im Do Q 1 g BT /F1 12 Tf 60 200 Td (kerfuffle) Tj ET'
    assert read(page_pdf(text, **options)) == 'kerfuffle'


def test_text_in_forms_is_judged_too(page_pdf):
    form = stream('BT /F1 12 Tf 50 200 Td (kerfuffle) Tj ET 1 g BT 50 150 Td (white) Tj ET',
                  '/Type /XObject /Subtype /Form /BBox [0 0 400 300] '
                  '/Resources << /Font << /F1 3 0 R >> >>')
    file = page_pdf(SEEN + '/Fm Do', resources='/XObject << /Fm 4 0 R >>', more=[form])
    assert read(file) == 'Tulips in the garden kerfuffle'


def test_a_turned_page_is_judged_where_its_text_is(page_pdf):
    text = SEEN + '1 g BT 50 200 Td (kerfuffle) Tj ET'
    for angle in (90, 180, 270):
        assert read(page_pdf(text, page=f'/Rotate {angle}')) == 'Tulips in the garden'


def test_the_hidden_case(shared_dir):
    file = shared_dir / 'cases' / 'hidden' / 'hidden.pdf'
    if not file.is_file():
        pytest.skip('no cases there')
    assert read(file) == 'Visible sentence about tulips in the garden of the palace.'
