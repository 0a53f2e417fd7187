"""Lines of a PDF page: letter-spaced words are words, columns of characters are lines."""

import numpy as np
import pytest

from tests.corpus.documents import stream
from vrag_jax.corpus.pdf.document import Pdf

MANY = 16_000_000
LATIN = '/F1 24 Tf '
# A font whose characters are their code points, written across and down.
CJK = ('/F2 << /Type /Font /Subtype /Type0 /BaseFont /HeiseiMin-W3 /Encoding /UniJIS-UCS2-{} '
       '/DescendantFonts [<< /Type /Font /Subtype /CIDFontType0 /BaseFont /HeiseiMin-W3 '
       '/CIDSystemInfo << /Registry (Adobe) /Ordering (Japan1) /Supplement 2 >> /DW 1000 '
       '/FontDescriptor << /Type /FontDescriptor /FontName /HeiseiMin-W3 /Flags 4 '
       '/FontBBox [-123 -257 1001 910] /ItalicAngle 0 /Ascent 723 /Descent -241 /CapHeight 709 '
       '/StemV 69 >> >>] >>')


def read(file, number=1):
    with Pdf(file) as pdf:
        page = pdf.read(number, 144, MANY)
    if page.font_error:
        pytest.skip(page.font_error)
    return page


def placed(text, step, x=20, y=250, size=24, font='F1'):
    """Each letter on its own; a space is a step without one."""
    return ''.join(f'BT /{font} {size} Tf {x + step * i} {y} Td {code(c, font)} Tj ET '
                   for i, c in enumerate(text) if c != ' ')


def code(text, font='F1'):
    return f'({text})' if font == 'F1' else f'<{text.encode("utf-16-be").hex()}>'


@pytest.mark.parametrize('content, text', [
    (placed('KEYNOTE', 32), 'KEYNOTE'),
    (placed('KEYNOTE', 45), 'KEYNOTE'),
    (placed('OUR PLAN', 40), 'OUR PLAN'),
    (placed('quarterly', 30), 'quarterly'),
    (placed('Kapitel  Eins', 26), 'Kapitel Eins'),
    (placed('FILM  WILL', 28), 'FILM WILL'),
    (f'BT {LATIN} 14 Tc 20 250 Td (ANNUAL PLAN) Tj ET', 'ANNUAL PLAN'),
    (f'BT {LATIN} 6 Tc 20 250 Td (ANNUAL PLAN) Tj ET', 'ANNUAL PLAN'),
    (f'BT {LATIN} 20 250 Td (K E Y N O T E) Tj ET', 'KEYNOTE'),
    # No words: columns of a table, the alphabet, numbers, a sum.
    (placed('MTWT', 90), 'M T W T'),
    (placed('ABCDE', 40), 'A B C D E'),
    (placed('1234', 40), '1 2 3 4'),
    (placed('AN', 40), 'A N'),
    (f'BT {LATIN} 20 250 Td (plan A or B) Tj ET', 'plan A or B')])
def test_letters_set_wide_apart_are_a_word(page_pdf, content, text):
    page = read(page_pdf(content, size=(500, 300)))
    assert page.text == text
    assert [word.text for word in page.words] == text.split()
    ink = np.asarray(page.image.convert('L')) < 128
    for word in page.words:
        x1, y1, x2, y2 = word.box
        ink[y1:y2, x1:x2] = False
    assert not ink.any()


@pytest.mark.parametrize('content, text', [
    (placed('年次報告書', 60, font='F2'), '年次報告書'),
    (placed('目次', 40, font='F2'), '目次'),
    ('BT /F2 16 Tf 10 Tc 20 250 Td ' + code('東京都', 'F2') + ' Tj ET',
     '東京都')])
def test_ideographs_placed_one_by_one_are_one_run(page_pdf, content, text):
    page = read(page_pdf(content, fonts=CJK.format('H')))
    assert page.text == text and [word.text for word in page.words] == [text]


@pytest.mark.parametrize('one_by_one', [False, True])
def test_columns_of_characters_are_lines_from_the_right(page_pdf, one_by_one):
    columns = [(300, '年次報告書'), (276, '東京都交通'), (252, '北京市')]
    if one_by_one:
        content = ''.join(f'BT /F2 16 Tf {x} {280 - 18 * i} Td {code(c, "F2")} Tj ET '
                          for x, column in columns for i, c in enumerate(column))
    else:
        content = ''.join(f'BT /F2 16 Tf {x} 280 Td {code(column, "F2")} Tj ET '
                          for x, column in columns)
    page = read(page_pdf(content, fonts=CJK.format('V')))
    assert page.text.split('\n') == [column for _, column in columns]
    assert [word.text for word in page.words] == page.text.split('\n')
    box = page.words[0].box
    assert box[3] - box[1] > 3 * (box[2] - box[0])


def test_text_that_is_turned_has_whole_words(page_pdf):
    page = read(page_pdf('BT /F1 12 Tf 0 1 -1 0 50 60 Tm (Revenue jumps wildly) Tj ET'))
    assert page.text == 'Revenue jumps wildly'
    assert [word.text for word in page.words] == ['Revenue', 'jumps', 'wildly']


@pytest.mark.parametrize('form, letters', [
    ('\ufb01', 'fi'), ('\ufb02', 'fl'), ('\ufb03', 'ffi'), ('\ufb06', 'st'), ('\u2f08', '人'),
    ('\ufefb', '\u0644\u0627'),
    # These are not forms of letters.
    ('\xb2', '\xb2'), ('\u2122', '\u2122'), ('\xbd', '\xbd'), ('\uff21', '\uff21')])
def test_ligatures_are_the_letters_they_stand_for(page_pdf, form, letters):
    cmap = stream('/CIDInit /ProcSet findresource begin 12 dict begin begincmap '
                  '1 begincodespacerange <00> <ff> endcodespacerange 1 beginbfchar '
                  f'<41> <{form.encode("utf-16-be").hex()}> endbfchar endcmap end end')
    fonts = '/F3 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 4 0 R >>'
    page = read(page_pdf('BT /F3 20 Tf 20 250 Td (A) Tj ET', more=[cmap], fonts=fonts))
    assert page.text == letters and [word.text for word in page.words] == [letters]


def test_the_letter_spaced_cases(shared_dir):
    cases = shared_dir / 'cases'
    if not cases.is_dir():
        pytest.skip('no cases there')
    assert read(cases / 'vertical2' / 'tracked.pdf').text.split('\n')[:2] == [
        'QUARTERLY', '年次報告書']
    assert read(cases / 'tracking' / 'tracking.pdf').text.split('\n')[:2] == [
        'ANNUAL REVENUE', 'KEYNOTE']
    text = read(cases / 'tracking' / 'cjk_spaced.pdf').text
    assert text.startswith('東京都交通局年次報告書')
    assert '北京市环境保护局' in text
