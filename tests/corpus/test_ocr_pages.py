"""OCR of pages as they come: turned, askew, larger than the OCR takes them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vrag_jax.corpus.ocr import OcrReader
from vrag_jax.corpus.ocr_lines import (
    OcrLine,
    beside,
    in_reading_order,
    is_known,
    turned_back,
)

LINES = ('Quarterly melon production of Zanzibar', 'amounted to 7315 tonnes in March,',
         'more than ever in the archipelago.')


def page():
    image = Image.new('L', (900, 500), 255)
    for i, line in enumerate(LINES):
        ImageDraw.Draw(image).text((60, 80 + 90 * i), line, 0, ImageFont.load_default(36))
    return image


def inked(image, box):
    """Share of a box that is ink."""
    return (np.asarray(image)[box[1]:box[3], box[0]:box[2]] < 128).mean()


@pytest.mark.parametrize('degrees', [90, 180, 270, 4, -4])
def test_lines_of_a_turned_scan_are_in_reading_order(tmp_path, degrees):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    image = page().rotate(degrees, expand=True, fillcolor=255)
    image.save(tmp_path / 'a.png')
    text, words = OcrReader(None).read_words(tmp_path / 'a.png')
    assert text.split('\n') == [*LINES]
    assert [word for word, _ in words] == text.split()
    for _, box in words:  # Where their ink is in the image as it is stored.
        assert 0.05 < inked(image, box) < 0.7
        assert 0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height


def test_a_footnote_of_a_large_page_is_read_once_and_last(tmp_path):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    image = Image.new('L', (5334, 3000), 255)
    draw = ImageDraw.Draw(image)
    for text, top, size in (('ANNUAL HARBOUR REPORT', 300, 300),
                            ('Traffic has grown in all of the basins since 1987', 1000, 90),
                            ('Source: port authority, survey 4471 of dredging works', 2900, 22)):
        draw.text((300, top), text, 0, ImageFont.load_default(size))
    image.save(tmp_path / 'a.png')
    lines = OcrReader(None).read_lines(tmp_path / 'a.png')
    assert [line.text for line in lines] == [
        'ANNUAL HARBOUR REPORT', 'Traffic has grown in all of the basins since 1987',
        'Source: port authority, survey 4471 of dredging works']
    for line in lines:
        for _, box in line.words:
            assert inked(image, box) > 0.05


def line(text, x1, y1, x2, y2, words=()):
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], float)
    return OcrLine(text, 1.0, corners, words or ((text, (x1, y1, x2, y2)),))


def test_rows_are_read_from_left_to_right_on_a_page_askew():
    cells = [(text, x, y) for y, row in ((0, 'abc'), (40, 'def'), (80, 'ghi'))
             for x, text in zip((0, 300, 600), row, strict=True)]
    angle = np.deg2rad(5)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    lines = []
    for text, x, y in cells:
        upright = line(text, x, y, x + 200, y + 24)
        lines.append(OcrLine(text, 1.0, upright.corners @ turn, upright.words))
    assert ''.join(x.text for x in in_reading_order(lines[::-1])) == 'abcdefghi'


@pytest.mark.parametrize('turns', range(4))
def test_boxes_of_a_turned_image_are_those_of_the_image(turns):
    pixels = np.zeros((40, 70), np.uint8)
    pixels[np.s_[5:9, 30:45]] = 1
    down, across = np.nonzero(np.rot90(pixels, turns))
    found = turned_back(line('x', across.min(), down.min(), across.max() + 1, down.max() + 1),
                        turns, (70, 40))
    assert found.words == (('x', (30, 5, 45, 9)),) and found.box == (30, 5, 45, 9)


def test_what_is_known_is_left_out_word_by_word():
    both = line('Page 17 melons', 0, 0, 140, 30, (('Page', (0, 0, 40, 30)), ('17', (50, 0, 70, 30)),
                                                ('melons', (80, 0, 140, 30))))
    # As high as its letters, in the box of the line.
    assert [x.text for x in beside([both], [(0, 10, 38, 20), (52, 10, 70, 20)])] == ['melons']
    assert beside([both], [(0, 0, 140, 30)]) == []
    assert beside([both], []) == [both]
    assert is_known(both, [line('x', 0, 0, 100, 30)]) and not is_known(both, [])
