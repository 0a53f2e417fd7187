"""OCR reads Chinese and English pages; what was read once is kept by content."""

import hashlib
import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vrag_jax.corpus.ocr import OcrError, OcrReader
from vrag_jax.corpus.ocr_lines import line_words


def test_a_real_page_is_read_and_kept(shared_dir, tmp_path):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    page = tmp_path / 'page.png'
    with Image.open(shared_dir / 'real_pages' / 'pages' / 'aliyun4_4.jpg') as image:
        image.resize((1067, 600)).save(page)  # a fifth of its size is read much faster
    text = OcrReader(tmp_path / 'texts').read(page)
    # Chinese and English as a reader sees them on the page.
    for seen in ('云上数据中心网络演进', 'VPC诞生', 'IPAM', '2014'):
        assert seen in text
    [kept] = (tmp_path / 'texts').iterdir()
    assert kept.stem == hashlib.sha256(page.read_bytes()).hexdigest()
    assert OcrReader(tmp_path / 'texts').read(page) == text


def test_words_of_a_page_are_boxed_where_their_ink_is(tmp_path):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    image, font = Image.new('L', (400, 160), 255), ImageFont.load_default(28)
    draw = ImageDraw.Draw(image)
    lines = {30: 'ANNUAL REPORT', 100: '1987'}
    for top, line in lines.items():
        draw.text((40, top), line, 0, font)
    image.save(tmp_path / 'a.png')
    text, words = OcrReader(None).read_words(tmp_path / 'a.png')
    assert text == 'ANNUAL REPORT\n1987'
    assert [word for word, _ in words] == text.split()
    ink = np.asarray(image) < 128
    for word, (x1, y1, x2, y2) in words:
        # Where the word would be alone: drawn at the same place on an empty page.
        top, line = next((t, line) for t, line in lines.items() if word in line)
        left = 40 + font.getlength(line[:line.index(word)])
        seen = draw.textbbox((left, top), word, font)
        middle = (seen[0] + seen[2]) / 2, (seen[1] + seen[3]) / 2
        assert x1 < middle[0] < x2 and y1 < middle[1] < y2
        assert x2 - x1 < 1.5 * (seen[2] - seen[0]) and ink[y1:y2, x1:x2].any()
    assert OcrReader(None).read(tmp_path / 'a.png') == text


def test_pieces_of_words_are_put_together():
    box = [[0, 0], [10, 0], [10, 5], [0, 5]]
    pieces = [('HILL+', 1.0, box), ('KNOWL', 1.0, [[12, 1], [20, 1], [20, 7], [12, 7]]),
              ('X', 1.0, [[30, 0], [35, 0], [35, 5], [30, 5]])]
    corners = [[0, 0], [40, 0], [40, 8], [0, 8]]
    assert line_words('HILL+KNOWL X', corners, pieces, (33, 100)) == [
        ('HILL+KNOWL', (0, 0, 20, 7)), ('X', (30, 0, 33, 5))]
    # Cut otherwise than at white space: the line is told as a whole.
    assert line_words('HIL L+KNOWLX', corners, pieces, (33, 100)) == [
        ('HIL L+KNOWLX', (0, 0, 33, 8))]


def test_kept_text_needs_no_ocr_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rapidocr', None)
    (tmp_path / 'a.png').write_bytes(b'the same content')
    digest = hashlib.sha256(b'the same content').hexdigest()
    (tmp_path / f'{digest}.json').write_text(json.dumps({'engine': 'x', 'text': '年报'}), 'utf-8')
    assert OcrReader(tmp_path).read(tmp_path / 'a.png') == '年报'
    (tmp_path / f'{digest}.json').write_text('{', 'utf-8')
    with pytest.raises(ValueError, match='not a text kept by the OCR'):
        OcrReader(tmp_path).read(tmp_path / 'a.png')


def test_without_the_package_the_extra_is_named(make_store, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rapidocr', None)
    with pytest.raises(ImportError, match=r'\[ocr\]'):
        OcrReader(None).read(make_store([None]).path('p1'))


def test_an_image_over_which_the_ocr_fails_leaves_the_others(tmp_path):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    reader = OcrReader(tmp_path / 'texts')
    Image.new('L', (1, 3000), 255).save(tmp_path / 'strip.png')
    Image.new('L', (90, 90), 255).save(tmp_path / 'blank.png')
    for read in (reader.read, reader.read_words):
        with pytest.raises(OcrError, match='OCR fails: ResizeImgError$'):
            read(tmp_path / 'strip.png')
    assert reader.read(tmp_path / 'blank.png') == ''
    assert len(list((tmp_path / 'texts').iterdir())) == 1


def test_an_ocr_that_reads_nothing_at_all_is_not_an_error_of_the_image(make_store):
    def broken(*_, **__):
        raise RuntimeError('no model')

    reader = OcrReader(None)
    reader._engine = broken
    with pytest.raises(ImportError, match=r'reads no image at all \(RuntimeError: no model\)'):
        reader.read(make_store([None]).path('p1'))
