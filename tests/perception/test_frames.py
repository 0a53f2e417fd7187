"""Coordinate frames: encoder pixels and page pixels."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrag_jax.perception.frames import Frame

PAGE = Frame('p', (5334, 3000), (0, 0, 5334, 3000), (840, 448))
CROP = Frame('p', (5334, 3000), (1000, 500, 1200, 600), (560, 280))


def test_a_box_on_a_page_scales_by_page_over_encoder_size():
    # REFERENCE: [x1*w_raw/w_enc, y1*h_raw/h_enc, x2*w_raw/w_enc, y2*h_raw/h_enc]
    expected = (84 * 5334 / 840, 112 * 3000 / 448, 420 * 5334 / 840, 448 * 3000 / 448)
    assert PAGE.to_page((84, 112, 420, 448)) == pytest.approx(expected)


def test_a_box_on_a_crop_is_composed_back_to_the_page():
    # 200 x 100 page pixels are shown at 560 x 280: 2.8 encoder pixels a page pixel.
    assert CROP.to_page((28, 56, 280, 280)) == pytest.approx((1010, 520, 1100, 600))
    assert CROP.from_page((1010, 520, 1100, 600)) == pytest.approx((28, 56, 280, 280))


@settings(deadline=None)
@given(st.data())
def test_there_and_back_for_any_frame(data):
    width, height = data.draw(st.tuples(*[st.integers(1, 20000)] * 2))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    region = (left, top, data.draw(st.integers(left + 1, width)),
              data.draw(st.integers(top + 1, height)))
    size = data.draw(st.tuples(*[st.integers(1, 300)] * 2))
    frame = Frame('p', (width, height), region, (size[0] * 28, size[1] * 28))
    box = data.draw(st.tuples(*[st.floats(0, 10000)] * 4))
    assert frame.from_page(frame.to_page(box)) == pytest.approx(box, abs=1e-3)
    assert frame.to_page(frame.from_page(box)) == pytest.approx(box, abs=1e-3)


@pytest.mark.parametrize('region', [
    (0, 0, 101, 100), (-1, 0, 100, 100), (50, 0, 50, 100), (0, 60, 100, 40)])
def test_a_region_has_an_area_inside_the_page(region):
    with pytest.raises(ValueError, match='region'):
        Frame('p', (100, 100), region, (28, 28))


def test_encoder_size_must_be_positive():
    with pytest.raises(ValueError, match='encoder_size'):
        Frame('p', (100, 100), (0, 0, 100, 100), (28, 0))
