"""What is written down of a page, by hand, and boxes around regions of it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrag_jax.actions.grammar import parse_action
from vrag_jax.data.pageworld.layout import PageSpec, PanelSpec
from vrag_jax.data.pageworld.transcripts import (
    box_around,
    box_text,
    find_panel,
    read_headings,
    read_panel,
)
from vrag_jax.perception.frames import Frame

PANELS = tuple(
    PanelSpec(heading, kind, position, (0, 0, 9, 9), (0, 0, 3, 3), (4, 4, 8, 8), cells, target, 0)
    for heading, kind, position, cells, target in (
        ('A', 'text', 'top left', ('4', '7', '2'), None),
        ('K', 'table', 'top right', ('4', '0', '2'), None),
        ('M', 'chart', 'bottom left', ('9', '1', '1'), None),
        ('Q', 'pointer', 'bottom right', ('>', 'T', ''), (2, 'T'))))
PAGE = PageSpec('velora_1', 'velora', 1, 'market', 'velora market', PANELS)


def test_values():
    assert [read_panel(panel) for panel in PANELS] == [
        '472.', ' a4 b0 c2.', ' a9 b1 c1.', ' names T.']


def test_reading_a_panel_stops_at_the_column_that_is_asked_for():
    assert [read_panel(panel, until='b') for panel in PANELS] == [
        '472.', ' a4 b0.', ' a9 b1.', ' names T.']


def test_headings_are_written_down_in_reading_order():
    assert read_headings(PAGE) == ' top left A top right K bottom left M bottom right Q.'


def test_a_panel_is_found_by_what_the_question_names():
    assert find_panel(PAGE, PANELS[1], 'K') == ' K: top left A top right K.'
    assert find_panel(PAGE, PANELS[0], 'top left') == ' top left: top left A.'


@given(st.tuples(*[st.integers(0, 9999)] * 2, *[st.integers(1, 9999)] * 2))
def test_box_text_is_parsed_back(numbers):
    x, y, width, height = numbers
    box = (x, y, x + width, y + height)
    assert parse_action(f'<bbox>{box_text(box)}</bbox>').box == box


FRAME = Frame('p', (448, 448), (0, 0, 448, 448), (112, 112))


def test_a_box_holds_the_region_in_whole_encoder_pixels():
    # 102 / 4 = 25.5, 210 / 4 = 52.5: outwards to 25 and 53, then the margin.
    assert box_around(FRAME, (102, 40, 210, 96)) == (25, 10, 53, 24)
    assert box_around(FRAME, (102, 40, 210, 96), margin=2) == (23, 8, 55, 26)


def test_a_box_on_a_crop_is_in_the_pixels_of_the_crop():
    crop = Frame('p', (448, 448), (100, 40, 212, 96), (224, 112))
    assert box_around(crop, (110, 50, 120, 60)) == (20, 20, 40, 40)


@given(st.integers(0, 447), st.integers(0, 447), st.integers(1, 200), st.integers(1, 200),
       st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))
def test_boxes_stay_in_the_image_and_hold_the_region(
        x, y, width, height, margin, jitter, shift, seed):
    region = (x, y, min(x + width, 448), min(y + height, 448))
    left, top, right, bottom = box_around(
        FRAME, region, margin, jitter, random.Random(seed), shift)
    assert 0 <= left < right <= 112 and 0 <= top < bottom <= 112
    x1, y1, x2, y2 = FRAME.from_page(region)
    if jitter + shift <= margin:
        assert left <= x1 and top <= y1 and right >= x2 and bottom >= y2
    slack = margin + jitter + shift + 1
    assert left >= x1 - slack and right <= x2 + slack


def test_a_shifted_box_keeps_its_size():
    region = (200, 160, 240, 200)
    boxes = {box_around(FRAME, region, 2, 0, random.Random(seed), 3) for seed in range(1000)}
    assert {(b[2] - b[0], b[3] - b[1]) for b in boxes} == {(14, 14)}
    assert {(b[0] - 48, b[1] - 38) for b in boxes} == {
        (x, y) for x in range(-3, 4) for y in range(-3, 4)}


@pytest.mark.parametrize('values', [{'jitter': 1}, {'shift': 1}])
def test_chance_without_a_source_is_refused(values):
    with pytest.raises(ValueError, match='rng'):
        box_around(FRAME, (0, 0, 8, 8), **values)
