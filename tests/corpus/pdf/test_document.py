"""PDF pages: size by dpi within limits, text, and words boxed where their ink is."""

import numpy as np
import pytest

from vrag_jax.corpus.pdf.document import Pdf

MANY = 16_000_000


def read(file, number=1, dpi=144, max_pixels=MANY):
    with Pdf(file) as pdf:
        page = pdf.read(number, dpi, max_pixels)
        return np.asarray(page.image.convert('L')), page.text, page.words


def test_a_page_is_rendered_at_its_dpi(make_pdf):
    file = make_pdf('a.pdf', 'one', 'two')
    with Pdf(file) as pdf:
        assert len(pdf) == 2
    for dpi, shape in ((72, (100, 200)), (144, (200, 400)), (36, (50, 100))):
        assert read(file, 1, dpi)[0].shape == shape
    assert [read(file, n)[1] for n in (1, 2)] == ['one', 'two']
    image, text, words = read(make_pdf('blank.pdf', ''))
    assert (image == 255).all() and text == '' and words == []


@pytest.mark.parametrize('entries, size', [
    ('', (400, 200)), ('/Rotate 90', (200, 400)), ('/Rotate 180', (400, 200)),
    ('/CropBox [10 20 180 90]', (340, 140)), ('/Rotate 270 /CropBox [10 20 180 90]', (140, 340))])
def test_word_boxes_hold_the_ink_of_their_words(make_pdf, entries, size):
    image, text, words = read(make_pdf('a.pdf', 'Annual report', page_entries=entries))
    assert image.shape[::-1] == size
    assert text == 'Annual report' and [word.text for word in words] == ['Annual', 'report']
    ink = image < 128
    total = ink.sum()
    inside = np.zeros_like(ink)
    for word in words:
        x1, y1, x2, y2 = word.box
        assert ink[y1:y2, x1:x2].sum() > 0.2 * total
        inside[y1:y2, x1:x2] = True
        # Nowhere is a box much larger than its ink.
        rows, columns = np.nonzero(ink[y1:y2, x1:x2])
        assert (y2 - y1) - np.ptp(rows) <= 4 and (x2 - x1) - np.ptp(columns) <= 4
    assert ink[inside].sum() > 0.99 * total


def test_what_lies_outside_of_the_page_is_not_read(make_pdf):
    _, text, words = read(make_pdf('a.pdf', 'Annual report', page_entries='/CropBox [0 0 86 100]'))
    assert text == 'Annual' and [word.text for word in words] == ['Annual']
    assert words[0].box[2] <= 172


@pytest.mark.parametrize('entries, size', [
    # A CropBox that leaves nothing of the page shows all of it.
    ('/CropBox [500 500 700 600]', (400, 200)), ('/CropBox [0 0 0 0]', (400, 200)),
    ('/CropBox [-90 -90 -10 -10]', (400, 200)),
    ('/CropBox [500 500 700 600] /Rotate 90', (200, 400)),
    # What lies outside of the MediaBox is cut off; corners may come in any order.
    ('/CropBox [-50 -50 180 90]', (360, 180)), ('/CropBox [180 90 0 0]', (360, 180))])
def test_a_page_is_what_is_left_of_its_boxes(make_pdf, entries, size):
    image, text, words = read(make_pdf('a.pdf', 'Annual report', page_entries=entries))
    assert image.shape[::-1] == size
    assert text == 'Annual report'
    ink = image < 128
    for word in words:
        x1, y1, x2, y2 = word.box
        ink[y1:y2, x1:x2] = False
    assert not ink.any()


def test_boxes_are_inherited(page_pdf):
    file = page_pdf('BT /F1 12 Tf 150 150 Td (Annual report) Tj ET', page='/Parent 2 0 R')
    file.write_bytes(file.read_bytes().replace(
        b'/Type /Pages', b'/CropBox [100 100 300 200] /Type /Pages'))
    image, text, words = read(file)
    assert image.shape == (200, 400) and text == 'Annual report'
    assert [word.box[0] for word in words][0] in range(98, 104)


def test_the_geometry_case(shared_dir):
    file = shared_dir / 'cases' / 'cropout.pdf'
    if not file.is_file():
        pytest.skip('no cases there')
    image, text, words = read(file)
    assert image.shape == (1684, 1191)
    assert text == 'Geometry test cropout.pdf about pelicans and herons.'
    assert len(words) == 7


@pytest.mark.parametrize('size, limit', [
    ((14_400, 14_400), 1_000_000), ((14_400, 2), 1_000_000), ((1000, 1000), 300)])
def test_huge_pages_are_bounded(make_pdf, size, limit):
    image = read(make_pdf('a.pdf', 'x', size=size), max_pixels=limit)[0]
    assert image.size <= limit and max(image.shape) <= 16_383
    # As large as the limits let it be.
    assert image.size > 0.9 * limit or max(image.shape) > 0.9 * 16_383
    assert image.shape[1] / image.shape[0] == pytest.approx(size[0] / size[1], rel=0.5)


def test_what_cannot_be_read_says_why(make_pdf, tmp_path):
    secret = '/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{0}> /U <{0}> >> /ID [<00> <00>]'
    with pytest.raises(ValueError, match='needs a password'):
        Pdf(make_pdf('a.pdf', 'x', trailer=secret.format('00' * 32)))
    # PDFium would say of this one what it said of the one before.
    with pytest.raises(ValueError, match='no pages'):
        Pdf(make_pdf('b.pdf'))
    (tmp_path / 'c.pdf').write_bytes(b'not a PDF')
    with pytest.raises(ValueError, match='cannot be read as a PDF'):
        Pdf(tmp_path / 'c.pdf')
    with Pdf(make_pdf('d.pdf', 'x')) as pdf, pytest.raises(ValueError):
        pdf.read(2, 72, MANY)


def test_words_of_a_real_paper_are_those_of_its_text(shared_dir):
    file = shared_dir / 'mmlongbench_dev' / 'documents' / '2310.07609v1.pdf'
    image, text, words = read(file, 2)
    read_words = ' '.join(word.text for word in words).split()
    # A word that is hyphenated at a line end is one in the text and two on the page.
    assert len(set(text.split()) & set(read_words)) > 0.85 * len(set(text.split()))
    ink = image < 128
    inside = np.zeros_like(ink)
    for word in words:
        inside[word.box[1]:word.box[3], word.box[0]:word.box[2]] = True
    assert ink[inside].sum() > 0.8 * ink.sum() and inside.mean() < 0.6
