"""Affine maps: what rotations, flips and shifts do to points and boxes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrag_jax.perception.affine import (
    IDENTITY,
    Affine,
    rotation,
    shift,
)

FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM = Affine(a=-1.0), Affine(e=-1.0)
NUMBERS = st.floats(-1e4, 1e4)
MAPS = st.one_of(
    st.floats(-720, 720).map(rotation), st.sampled_from([FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM]),
    st.builds(shift, NUMBERS, NUMBERS))


def test_a_quarter_turn_is_clockwise_on_an_image():
    # y points down: what is on the right comes to the bottom, what is at the bottom to the left.
    assert rotation(90).point(1, 0) == (0, 1)
    assert rotation(90).point(0, 1) == (-1, 0)
    assert rotation(180).point(3, 4) == (-3, -4)
    assert rotation(-90) == rotation(270) == rotation(630)
    assert rotation(45).point(1, 0) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))


def test_the_hull_of_a_tilted_box_is_upright():
    assert rotation(90).hull((1, 2, 5, 4)) == (-4, 1, -2, 5)
    side = math.sqrt(0.5)
    assert rotation(45).hull((0, 0, 1, 1)) == pytest.approx((-side, 0, side, 2 * side))


@given(MAPS, MAPS, NUMBERS, NUMBERS)
def test_maps_compose_and_have_an_inverse(one, other, x, y):
    both = one.after(other)
    assert both.point(x, y) == pytest.approx(one.point(*other.point(x, y)), abs=1e-6)
    assert both.inverse().point(*both.point(x, y)) == pytest.approx((x, y), abs=1e-6)


def test_four_quarter_turns_and_two_flips_are_exactly_nothing():
    turned = rotation(90)
    for _ in range(3):
        turned = rotation(90).after(turned)
    assert turned == FLIP_TOP_BOTTOM.after(FLIP_TOP_BOTTOM) == IDENTITY
    assert rotation(90).inverse() == rotation(270)


@pytest.mark.parametrize(('matrix', 'expected'), [
    (IDENTITY, True), (rotation(270), True), (shift(3, -4).after(FLIP_LEFT_RIGHT), True),
    (shift(0.5, 0), False), (rotation(45), False), (Affine(a=2.0), False),
    (Affine(1.0, 1.0, 0.0, 0.0, 1.0, 0.0), False)])
def test_which_maps_keep_pixels_whole(matrix, expected):
    assert matrix.keeps_pixels == expected
