"""A drawn trajectory shows its images, boxes and verdict in their colours."""

import numpy as np
import pytest
from PIL import ImageColor, ImageFont

from vrag_jax.evaluation.drawing import (
    BORDER,
    CHOSEN,
    EVIDENCE,
    RIGHT,
    WRONG,
    DrawingStyle,
    _wrap,
    draw_trajectory,
)
from vrag_jax.evaluation.trajectory_io import load_trajectories, save_trajectories

STYLE = DrawingStyle(column=224, margin=20, text=20)


def drawn(folder, trajectory):
    save_trajectories(folder, [trajectory])
    return np.asarray(draw_trajectory(load_trajectories(folder)[0], STYLE))


def where(pixels, colour):
    """Rows and columns of the pixels of a colour."""
    return np.nonzero((pixels == ImageColor.getrgb(colour)).all(-1))


def test_each_turn_has_a_column(tmp_path, zooming):
    assert drawn(tmp_path, zooming).shape[1] == 20 + 3 * (224 + 20)


def test_the_box_is_drawn_on_the_page_at_its_place(tmp_path, zooming):
    pixels = drawn(tmp_path, zooming)
    rows, columns = where(pixels, CHOSEN)
    # The page is enlarged twice and stands in the first column; the line runs around the box.
    assert columns.min() == pytest.approx(20 + 2 * 61 - BORDER, abs=1)
    assert columns.max() == pytest.approx(20 + 2 * 92 + BORDER, abs=1)
    assert np.ptp(rows) > 2 * (47 - 30)  # the box and its number above


def test_evidence_is_drawn_on_page_and_region(tmp_path, zooming):
    columns = where(drawn(tmp_path, zooming), EVIDENCE)[1]
    assert (columns < 20 + 224).any() and (columns > 20 + 224).any()


def test_the_colour_says_whether_it_is_right(tmp_path, zooming, hasty):
    right, wrong = drawn(tmp_path, zooming), drawn(tmp_path, hasty)
    assert [len(where(p, c)[0]) > 0 for p in (right, wrong) for c in (RIGHT, WRONG)] == [
        True, False, False, True]


def test_a_trajectory_without_images_and_answer_can_be_drawn(tmp_path, silent):
    pixels = drawn(tmp_path, silent)
    assert pixels.shape[1] == 20 + 224 + 20
    assert (pixels != 255).any()


def test_control_characters_are_drawn_as_their_escapes():
    assert _wrap('4\x007\n\u202e8', ImageFont.load_default(20), 200) == ['4\\x007', '\\u202e8']


@pytest.mark.parametrize('text', ['one two three four five', 'a' * 60, '云上数据中心' * 9, ''])
def test_wrapped_lines_fit_and_lose_nothing(text):
    font = ImageFont.load_default(20)
    lines = _wrap(text, font, 100)
    assert all(font.getlength(line) <= 100 for line in lines)
    assert ''.join(lines).replace(' ', '') == text.replace(' ', '')
