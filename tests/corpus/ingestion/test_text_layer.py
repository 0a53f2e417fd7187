"""Whether a text layer is believed: real fonts under wrong names, and texts of many kinds."""

import dataclasses
import random
import string

import numpy as np
import pytest

from vrag_jax.corpus.ingestion import text_layer
from vrag_jax.corpus.ingestion.folders import NO_TEXT
from vrag_jax.corpus.ingestion.text_layer import MEANINGLESS, MIXED, MOJIBAKE, SHAPES, SHORT, judge
from vrag_jax.corpus.pdf.document import Pdf
from vrag_jax.corpus.pdf.glyphs import Glyphs

TEXT = ('The harbour dues of Rotterdam were raised by eleven percent in the fiscal year of the '
        'dredging works, with quays, jetties and pilots kept by their own boards of experts.')
LOWER = string.ascii_lowercase


@pytest.fixture
def glyphs(make_pdf) -> Glyphs:
    """Of TEXT in Helvetica, some words a line."""
    words = TEXT.split()
    lines = [' '.join(words[i:i + 4]) for i in range(0, len(words), 4)]
    shown = ') Tj 0 -22 Td ('.join(lines)
    with Pdf(make_pdf('a.pdf', shown, size=(500, 60), page_entries='/UserUnit 1')) as pdf:
        return pdf.glyphs(1)


def renamed(glyphs: Glyphs, names: dict[int, int]) -> tuple[str, Glyphs]:
    """What a wrong ToUnicode map makes of text and glyphs, which look as before."""
    codes = np.array([names.get(code, code) for code in glyphs.codes.tolist()])
    return TEXT.translate(names), dataclasses.replace(glyphs, codes=codes)


def letters(to: str) -> dict[int, int]:
    return {**str.maketrans(LOWER, to), **str.maketrans(LOWER.upper(), to.upper())}


SHUFFLED = ''.join(random.Random(0).sample(LOWER, 26))


@pytest.mark.parametrize('names', [
    letters(LOWER[1:] + LOWER[:1]), letters(LOWER[3:] + LOWER[:3]),
    letters(LOWER[13:] + LOWER[:13]), letters(LOWER[::-1]), letters(SHUFFLED),
    {code: code - 29 for code in range(61, 127)}, {code: code + 1 for code in range(33, 126)},
    {ord(a): 0x430 + i for i, a in enumerate(LOWER)},
    {ord(a): 0x4E00 + 37 * i for i, a in enumerate(LOWER)},
    {ord(a): 0xAC00 + 37 * i for i, a in enumerate(LOWER)},
], ids=['shift1', 'shift3', 'rot13', 'reversed', 'shuffled', 'glyph-numbers', 'next', 'cyrillic',
        'han', 'hangul'])
def test_letters_that_their_glyphs_do_not_look_like_are_not_believed(glyphs, names):
    assert judge(TEXT, glyphs)[0] == ''
    reason, wrong = judge(*renamed(glyphs, names))
    assert reason == SHAPES and wrong.mean() > 0.9


@pytest.mark.parametrize('to', [LOWER[1:] + LOWER[:1], LOWER[3:] + LOWER[:3],
                                LOWER[13:] + LOWER[:13], SHUFFLED],
                         ids=['shift1', 'shift3', 'rot13', 'shuffled'])
@pytest.mark.parametrize('font', ['Helvetica', 'Times-Roman', 'Courier'])
def test_capitals_alone_are_judged_by_their_widths(make_pdf, font, to):
    words = TEXT.upper().split()
    shown = ') Tj 0 -22 Td ('.join(' '.join(words[i:i + 4]) for i in range(0, len(words), 4))
    file = make_pdf('a.pdf', shown, size=(500, 60))
    file.write_bytes(file.read_bytes().replace(b'/Helvetica', f'/{font}'.encode()))
    with Pdf(file) as pdf:
        glyphs = pdf.glyphs(1)
    assert judge(TEXT.upper(), glyphs)[0] == ''
    if font != 'Courier':  # Its capitals are all of one width.
        text, wrong = renamed(glyphs, letters(to))
        assert judge(text.upper(), wrong)[0] == SHAPES


@pytest.mark.parametrize('names, reason', [
    ({code: 0xE000 + code for code in range(33, 127)}, MEANINGLESS),
    ({code: 0xF0000 + code for code in range(33, 127)}, MEANINGLESS),
    ({code: 0xFFFD + 0 * code for code in range(33, 127)}, MEANINGLESS),
    ({code: (code - 32) % 30 + 3 for code in range(33, 127)}, MEANINGLESS),
    ({code: 0x2200 + code for code in range(33, 127)}, MEANINGLESS),
    ({code: 0x21 + code % 14 for code in range(65, 127)}, MEANINGLESS),
    ({code: code + 0x100 for code in range(33, 127)}, MIXED),
], ids=['private', 'plane15', 'replacement', 'controls', 'operators', 'signs', 'extended'])
def test_characters_without_a_meaning_are_not_believed(glyphs, names, reason):
    text, other = renamed(glyphs, names)
    # PDFium's text has no controls any more.
    text = ''.join(c for c in text if c.isprintable() or ord(c) > 127 or c == ' ')
    assert judge(text, other)[0] == reason


@pytest.mark.parametrize('text', [
    'Pr\u00fcfung der Gr\u00f6\u00dfen f\u00fcr die K\u00fcche', 'Отчёт о работе порта за год',
    '年度报告与前景展望以及其他', 'caf\u00e9 \u2013 \u201cd\u00e9j\u00e0 vu\u201d na\u00efve'])
@pytest.mark.parametrize('encoding', ['latin-1', 'cp1252'])
def test_utf8_read_as_latin1_is_not_believed(text, encoding):
    assert judge(text)[0] in ('', SHORT)
    # As readers of PDF take bytes that Windows-1252 does not have.
    wrong = ''.join(bytes([b]).decode(encoding, 'replace').replace('\ufffd', chr(b))
                    for b in text.encode())
    assert judge(wrong)[0] == MOJIBAKE


BELIEVED = {
    'numbers': '1,204.5 3,911.0 (2.4%) $ 17.20 — — 12.1 4.4 1,998 2,001 | 3.3 | 4.4',
    'formulas': '∑ᵢ₌₁ⁿ xᵢ² ≤ ‖x‖² + λ·∫f(t)dt, ∀ε>0 ∃δ>0: |x−y|<δ ⇒ |f(x)−f(y)|<ε; αβ = γδ',
    'code': 'def f(x): return {k: v[0] for (k, v) in x.items() if k != "a_b" and v[:2] == [1, 2]}',
    'contents': '1 Introduction ............................ 3\n2 Method ..................... 17',
    'leaders': 'Welcome ' + 40 * '\ufffd' + ' 17\nBanks and money ' + 40 * '\ufffd' + ' 23',
    'bullets': ' '.join(f'\uf0b7 a point about harbours {i}' for i in range(6)),
    'chinese': '北京市环境保护局发布了二零二三年度空气质量状况公报',
    'mixed': 'ユーザーはURLをクリックしてGoogleアカウントでログインします。API3つ',
    'arabic': 'تقرير سنوي عن حركة الميناء وأعمال الحفر في السنة المالية',
    'hindi': 'बंदरगाह की वार्षिक रिपोर्ट और वित्तीय वर्ष में खुदाई का काम',
    'thai': 'รายงานประจำปีของท่าเรือและงานขุดลอกในปีงบประมาณ',
    'russian': 'Портовые сборы Роттердама были повышены на одиннадцать процентов',
    'greek': 'Τα λιμενικά τέλη του Ρότερνταμ αυξήθηκαν κατά έντεκα τοις εκατό',
    'vietnamese': 'Phí cảng của Rotterdam đã được tăng lên mười một phần trăm trong năm',
    'polish': 'Zażółć gęślą jaźń, a opłaty portowe podwyższono o jedenaście procent',
    'french': 'À côté, l’élève a été reçu : ça ira où ? Tôt ou tard, naïvement, « à Noël »',
    'capitals': 'ÂÊÎ À L’ÉTÉ – ÜBERGRÖSSE, ÅNGSTRÖM ÇA SUFFIT ÑANDÚ',
    'hebrew': 'דמי הנמל של רוטרדם הועלו באחד עשר אחוזים בשנת הכספים',
}


@pytest.mark.parametrize('name', BELIEVED)
def test_texts_of_all_kinds_are_believed(name):
    assert judge(BELIEVED[name])[0] == ''


def test_little_and_no_text(glyphs):
    none = dataclasses.replace(glyphs, **{f.name: getattr(glyphs, f.name)[:0]
                                          for f in dataclasses.fields(glyphs) if f.name != 'total'})
    assert judge('', none)[0] == NO_TEXT and judge('Page 3', none)[0] == SHORT


@pytest.mark.parametrize('rotate', [0, 90, 180, 270])
def test_shapes_are_those_of_turned_text_too(make_pdf, rotate):
    angle = {0: '1 0 0 1 20 40', 90: '0 1 -1 0 60 20', 180: '-1 0 0 -1 480 40',
             270: '0 -1 1 0 40 480'}[rotate]
    shown = f') Tj ET BT /F1 9 Tf {angle} Tm ({TEXT[:90]}'
    with Pdf(make_pdf('a.pdf', shown, size=(500, 500))) as pdf:
        turned = pdf.glyphs(1)
    upright = dict(zip(turned.codes.tolist(), turned.ascents.tolist(), strict=True))
    assert upright[ord('h')] == pytest.approx(0.72, abs=0.02)
    assert upright[ord('a')] == pytest.approx(0.54, abs=0.02)
    assert judge(TEXT[:90], turned)[0] == ''
    _, other = renamed(turned, letters(LOWER[3:] + LOWER[:3]))
    assert judge(TEXT[:90], other)[0] == SHAPES


def test_real_documents_are_believed_but_for_one_that_is_garbled(shared_dir):
    """27 documents: of one all seven pages have a map to controls and signs."""
    found: dict[str, int] = {}
    for file in sorted((shared_dir / 'mmlongbench_dev' / 'documents').glob('*.pdf')):
        with Pdf(file) as pdf:
            for number in range(1, len(pdf) + 1, 3):
                glyphs = pdf.glyphs(number)
                text = ''.join(map(chr, glyphs.codes.tolist()))
                if judge(text, glyphs)[0] not in ('', NO_TEXT, SHORT):
                    found[file.name] = found.get(file.name, 0) + 1
    assert found == {'afe620b9beac86c1027b96d31d396407.pdf': 3}


def test_the_garbled_case_is_not_believed(shared_dir):
    folder = shared_dir / 'cases' / 'garbled'
    if not folder.is_dir():
        pytest.skip(f'{folder} is not there')
    for name, reason in (('garbled.pdf', MIXED), ('clean.pdf', '')):
        with Pdf(folder / name) as pdf:
            text = pdf.read(1, 72, 10**6).text
            assert text_layer.judge(text, pdf.glyphs(1))[0] == reason
