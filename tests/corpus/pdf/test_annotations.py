"""Form fields as filled in, remarks and stamps are in the text of a page, at their place."""

import numpy as np
import pytest

from tests.corpus.documents import stream
from vrag_jax.corpus.pdf.document import Pdf

MANY = 16_000_000
LABELS = ('BT /F1 12 Tf 20 250 Td (Name:) Tj 180 0 Td (Date:) Tj -180 -50 Td (Signed below) Tj '
          '0 -50 Td (Thank you) Tj ET')
BOXES = {'name': '[60 245 180 265]', 'date': '[235 245 380 265]', 'below': '[20 170 300 190]'}


def read(file, number=1):
    with Pdf(file) as pdf:
        page = pdf.read(number, 144, MANY)
        again = pdf.read(number, 144, MANY)
    assert (again.text, again.words) == (page.text, page.words)
    assert again.image.tobytes() == page.image.tobytes()
    return page


def look(text, size=12, at=(4, 6)):
    """An appearance stream."""
    return stream(f'BT /F1 {size} Tf 0 g {at[0]} {at[1]} Td ({text}) Tj ET',
                  '/Type /XObject /Subtype /Form /BBox [0 0 300 20] '
                  '/Resources << /Font << /F1 3 0 R >> >>')


def annotated(page_pdf, annotations, streams=(), fields=True, content=LABELS, **options):
    """A page whose annotations are objects 4, 5, ..., and streams follow them."""
    numbers = ' '.join(f'{4 + i} 0 R' for i in range(len(annotations)))
    form = (f'/AcroForm << /Fields [{numbers}] /DA (/F1 12 Tf 0 g) '
            '/DR << /Font << /F1 3 0 R >> >> >>') if fields else ''
    return page_pdf(content, page=f'/Annots [{numbers}]', catalog=form,
                    more=[*annotations, *streams], **options)


def widget(box, entries):
    return (f'<< /Type /Annot /Subtype /Widget /Rect {BOXES.get(box, box)} /F 4 '
            f'/DA (/F1 12 Tf 0 g) {entries} >>')


def remark(box, entries, kind='FreeText'):
    return f'<< /Type /Annot /Subtype /{kind} /Rect {BOXES.get(box, box)} {entries} >>'


def test_filled_in_fields_stand_beside_their_labels(page_pdf):
    page = read(annotated(page_pdf, [
        widget('date', '/FT /Tx /T (d) /V (2 May 2024) /AP << /N 6 0 R >>'),
        widget('name', '/FT /Tx /T (n) /V (Zebraquotient Limited) /AP << /N 7 0 R >>')],
        [look('2 May 2024'), look('Zebraquotient Limited')]))
    assert page.text.split('\n') == [
        'Name: Zebraquotient Limited Date: 2 May 2024', 'Signed below', 'Thank you']
    assert [word.text for word in page.words] == page.text.split()
    ink = np.asarray(page.image.convert('L')) < 128
    for word in page.words:
        x1, y1, x2, y2 = word.box
        rows, columns = np.nonzero(ink[y1:y2, x1:x2])
        assert (y2 - y1) - np.ptp(rows) <= 4 and (x2 - x1) - np.ptp(columns) <= 4


def test_fields_without_an_appearance_are_as_pdfium_draws_them(page_pdf):
    page = read(annotated(page_pdf, [
        widget('name', '/FT /Tx /T (n) /V (Zebraquotient)'),
        widget('date', '/FT /Ch /Ff 131072 /T (c) /Opt [[(a) (Aubergine)] [(b) (Broccoli)]] '
                       '/V (b)')]))
    assert 'Zebraquotient' in page.text
    ink = np.asarray(page.image.convert('L'))[70:110, 470:760] < 128
    assert ('Broccoli' in page.text) == bool(ink.any())


def test_what_is_chosen_is_what_is_shown(page_pdf):
    page = read(annotated(page_pdf, [
        widget('name', '/FT /Ch /Ff 131072 /T (c) /Opt [[(a) (Aubergine)] [(b) (Broccoli)]] '
                       '/V (b) /AP << /N 5 0 R >>')], [look('Broccoli')]))
    assert page.text.startswith('Name: Broccoli Date:')


@pytest.mark.parametrize('flag, signs', [('', '\u2610\u2611'), ('/Ff 32768', '\u25ef\u25c9')])
def test_buttons_say_whether_they_are_ticked(page_pdf, flag, signs):
    looks = '/AP << /N << /Yes 6 0 R /Off 7 0 R >> >>'
    cross = stream('0 0 m 12 12 l 0 12 m 12 0 l S', '/Type /XObject /Subtype /Form '
                                                    '/BBox [0 0 12 12]')
    page = read(annotated(page_pdf, [
        widget('[60 248 72 260]', f'/FT /Btn {flag} /T (a) /V /Off /AS /Off {looks}'),
        widget('[240 248 252 260]', f'/FT /Btn {flag} /T (b) /V /Yes /AS /Yes {looks}')],
        [cross, stream('', '/Type /XObject /Subtype /Form /BBox [0 0 12 12]')]))
    assert page.text.split('\n')[0] == f'Name: {signs[0]} Date: {signs[1]}'
    box = next(word.box for word in page.words if word.text == signs[1])
    assert box == (480, 80, 504, 104)


def test_a_comb_is_one_word(page_pdf):
    letters = ''.join(f'1 0 0 1 {4 + 20 * i} 6 Tm ({c}) Tj ' for i, c in enumerate('AB1 234'))
    comb = stream(f'BT /F1 12 Tf {letters} ET', '/Type /XObject /Subtype /Form '
                  '/BBox [0 0 300 20] /Resources << /Font << /F1 3 0 R >> >>')
    page = read(annotated(page_pdf, [
        widget('below', '/FT /Tx /Ff 16777216 /MaxLen 8 /T (n) /V (AB1 234) '
                        '/AP << /N 5 0 R >>')], [comb]))
    assert 'AB1 234' in page.text.split('\n')


@pytest.mark.parametrize('kind', ['FreeText', 'Stamp'])
def test_remarks_stand_where_they_are_seen(page_pdf, kind):
    page = read(annotated(page_pdf, [
        remark('below', '/F 4 /Contents (else) /AP << /N 5 0 R >>', kind)],
        [look('Approved by Quixotrina')], fields=False))
    assert page.text.split('\n') == [
        'Name: Date:', 'Signed below', 'Approved by Quixotrina', 'Thank you']


@pytest.mark.parametrize('entries, kind', [
    ('/F 2', 'FreeText'), ('/F 32', 'Stamp'), ('/F 4', 'Popup'),
    ('/F 2 /FT /Tx /T (x) /V (kerfuffle)', 'Widget')])
def test_what_is_not_shown_is_not_in_the_text(page_pdf, entries, kind):
    page = read(annotated(page_pdf, [
        remark('below', f'{entries} /Contents (kerfuffle) /AP << /N 5 0 R >>', kind)],
        [look('kerfuffle')], fields=kind == 'Widget'))
    assert 'kerfuffle' not in page.text and page.text.endswith('Signed below\nThank you')


@pytest.mark.parametrize('where', ['annotation', 'appearance'])
def test_an_annotation_of_a_layer_is_in_the_text_if_it_is_in_the_image(page_pdf, where):
    layer = '/OC 6 0 R'
    appearance = look('kerfuffle')
    if where == 'appearance':
        appearance = appearance.replace(b'/Subtype', layer.encode() + b' /Subtype')
    file = annotated(page_pdf, [
        remark('below', f'/F 4 {layer * (where == "annotation")} /AP << /N 5 0 R >>')],
        [appearance, '<< /Type /OCG /Name (L) >>'], fields=False)
    file.write_bytes(file.read_bytes().replace(
        b'/Type /Catalog', b'/Type /Catalog /OCProperties << /OCGs [6 0 R] /D << /OFF [6 0 R] '
                           b'>> >>'))
    page = read(file)
    ink = (np.asarray(page.image.convert('L'))[220:260, 40:600] < 128).any()
    assert ('kerfuffle' in page.text) == ink


def test_a_note_without_text_of_its_own_has_none(page_pdf):
    # The contents are shown in a window that opens by a click.
    page = read(annotated(page_pdf, [remark('below', '/F 4 /Contents (kerfuffle)', 'Text')],
                          fields=False))
    assert 'kerfuffle' not in page.text


def test_a_page_without_text_has_that_of_its_fields(page_pdf):
    page = read(annotated(page_pdf, [
        widget('name', '/FT /Tx /T (n) /V (Zebraquotient) /AP << /N 5 0 R >>')],
        [look('Zebraquotient')], content='0 0 m 10 10 l S'))
    assert page.text == 'Zebraquotient'


def test_fields_of_turned_and_cropped_pages_have_their_place(page_pdf):
    file = annotated(page_pdf, [
        widget('name', '/FT /Tx /T (n) /V (Zebraquotient) /AP << /N 5 0 R >>')],
        [look('Zebraquotient')])
    file.write_bytes(file.read_bytes().replace(
        b'/Annots', b'/Rotate 90 /CropBox [10 10 390 290] /Annots'))
    page = read(file)
    word = next(word for word in page.words if word.text == 'Zebraquotient')
    ink = np.asarray(page.image.convert('L')) < 128
    x1, y1, x2, y2 = word.box
    rows, columns = np.nonzero(ink[y1:y2, x1:x2])
    assert y2 - y1 > x2 - x1
    assert (y2 - y1) - np.ptp(rows) <= 4 and (x2 - x1) - np.ptp(columns) <= 4


def test_the_form_and_annotation_cases(shared_dir):
    cases = shared_dir / 'cases'
    if not cases.is_dir():
        pytest.skip('no cases there')
    assert read(cases / 'form' / 'form.pdf').text.split('\n') == [
        'Purchase order. Name of the supplier and total amount:', 'Zebraquotient Limited',
        '48213.77']
    assert read(cases / 'annot' / 'annot.pdf').text.split('\n') == [
        'Contract with a reviewer remark in an annotation below.',
        'Approved by Quixotrina Vandermeulen']
