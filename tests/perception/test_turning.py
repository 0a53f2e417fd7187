"""Turned images: which part of the page they show, and where boxes on them lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vrag_jax.perception.affine import IDENTITY, Affine, rotation
from vrag_jax.perception.frames import Frame
from vrag_jax.perception.image_ops import (
    PixelLimits,
    crop_and_zoom,
    crop_frame,
    encoder_size,
    render,
    show_page,
    turn,
    turned_frame,
)

FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM = Affine(a=-1.0), Affine(e=-1.0)
LIMITS = PixelLimits(28 * 28, 64 * 28 * 28)
TURNS = {'90': rotation(90), '180': rotation(180), '270': rotation(270),
         'left-right': FLIP_LEFT_RIGHT, 'top-bottom': FLIP_TOP_BOTTOM}
# What numpy makes of the pixels, [height, width, 3]; np.rot90 turns anticlockwise.
ON_PIXELS = {'90': lambda a: np.rot90(a, -1), '180': lambda a: np.rot90(a, 2),
             '270': np.rot90, 'left-right': np.fliplr, 'top-bottom': np.flipud}


def noise(width: int, height: int) -> Image.Image:
    """A page on which every pixel can be told from the others."""
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize('name', TURNS)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'P'])
def test_a_page_is_turned_as_numpy_turns_it(name, mode):
    page = noise(140, 84).convert(mode)
    _, frame = show_page(page, 'p', LIMITS)
    image, turned = turn(page, frame, TURNS[name], LIMITS)
    want = ON_PIXELS[name](np.asarray(page.convert('RGB')))
    assert turned.canvas_size == want.shape[1::-1] and turned.shows_whole_page
    assert turned.encoder_size == encoder_size(*want.shape[1::-1], LIMITS) == image.size
    np.testing.assert_array_equal(np.asarray(image), resized(want, image.size))


@pytest.mark.parametrize('name', TURNS)
def test_a_crop_of_a_turned_crop_shows_the_right_region(name):
    page = noise(300, 200)
    pixels = np.asarray(page)
    _, whole = show_page(page, 'p', LIMITS)
    scale_x, scale_y = whole.encoder_size[0] / 300, whole.encoder_size[1] / 200
    _, crop = crop_and_zoom(
        page, whole, (50 * scale_x, 30 * scale_y, 190 * scale_x, 120 * scale_y), LIMITS)
    assert crop.region == (50, 30, 190, 120)
    image, turned = turn(page, crop, TURNS[name], LIMITS)
    shown = ON_PIXELS[name](pixels[30:120, 50:190])
    np.testing.assert_array_equal(np.asarray(image), resized(shown, turned.encoder_size))
    # The middle of it, given in pixels of the turned image.
    height, width = shown.shape[:2]
    x, y = turned.encoder_size[0] / width, turned.encoder_size[1] / height
    image, inner = crop_and_zoom(page, turned, (20 * x, 10 * y, 80 * x, 70 * y), LIMITS)
    np.testing.assert_array_equal(
        np.asarray(image), resized(shown[10:70, 20:80], inner.encoder_size))


@pytest.mark.parametrize(('name', 'where'), [
    ('90', (60, 10, 90, 30)), ('180', (170, 60, 190, 90)), ('270', (10, 170, 40, 190)),
    ('left-right', (170, 10, 190, 40)), ('top-bottom', (10, 60, 30, 90))])
def test_boxes_on_a_turned_page_are_composed_back_to_the_page(name, where):
    frame = Frame('p', (200, 100), (0, 0, 200, 100), (200, 100))
    # Turned by hand: a mark at (10, 10, 30, 40) of a page of 200 x 100 pixels.
    limits = PixelLimits(200 * 100, 200 * 100, factor=100)
    turned = turned_frame(frame, TURNS[name], limits)
    assert turned.encoder_size == turned.canvas_size
    assert turned.from_page((10, 10, 30, 40)) == where
    assert turned.to_page(where) == (10, 10, 30, 40)


def test_padding_reaches_beyond_a_turned_crop_to_the_edge_of_the_turned_page():
    frame = Frame('p', (200, 100), (20, 30, 120, 80), (100, 50))
    turned = turned_frame(frame, rotation(90), PixelLimits(50 * 100, 50 * 100, factor=50))
    # On the page turned clockwise, 100 x 200, the crop is at x 20 to 70, y 20 to 120.
    assert (turned.region, turned.encoder_size) == ((20, 20, 70, 120), (50, 100))
    assert crop_frame(turned, (0, 0, 50, 100), LIMITS, 10).region == (10, 10, 80, 130)
    assert crop_frame(turned, (0, 0, 50, 100), LIMITS, 60).region == (0, 0, 100, 180)


def test_sizes_of_two_steps_are_those_of_the_turned_region():
    limits = PixelLimits(11000, 11800, two_steps=True)
    _, frame = show_page(noise(448, 224), 'p', limits)
    image, turned = turn(noise(448, 224), frame, rotation(270), limits)
    assert turned.box_size == frame.box_size[::-1] and turned.encoder_size == image.size
    assert turned.box_size != turned.encoder_size
    box = (0, 0, *turned.box_size)
    assert turned.to_page(box) == pytest.approx((0, 0, 448, 224))


def test_turned_back_it_is_the_image_that_it_was():
    page = noise(140, 84)
    image, frame = show_page(page, 'p', LIMITS)
    for step in ('90', 'left-right', '270', 'top-bottom'):
        _, frame = turn(page, frame, TURNS[step], LIMITS)
    # A flip between two quarter turns is the other flip: both together are nothing.
    assert frame.canvas == IDENTITY and frame == show_page(page, 'p', LIMITS)[1]
    assert render(page, frame).tobytes() == image.tobytes()


def test_a_slanted_page_is_straightened():
    """A page with a mark, rotated by 7 degrees by Pillow, is turned back."""
    straight = Image.new('RGB', (400, 300), 'white')
    straight.paste('black', (100, 80, 220, 140))
    slanted = straight.rotate(-7, Image.Resampling.BICUBIC, expand=True, fillcolor='white')
    _, frame = show_page(slanted, 'p', LIMITS)
    image, upright = turn(slanted, frame, rotation(-7), LIMITS)
    dark = np.asarray(image.convert('L')) < 128
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    # Full and upright, and about the middle as the mark was: (160, 110) of 400 x 300.
    assert dark[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].mean() > 0.95
    middle_x, middle_y = upright.canvas_size[0] / 2, upright.canvas_size[1] / 2
    want = (middle_x - 100, middle_y - 70, middle_x + 20, middle_y - 10)
    scale = np.array(upright.encoder_size * 2) / (upright.canvas_size * 2)
    assert found == pytest.approx(want * scale, abs=2)
    # A crop of that box is the mark: all black.
    image, _ = crop_and_zoom(
        slanted, upright, [found[0] + 4, found[1] + 4, found[2] - 4, found[3] - 4], LIMITS)
    assert np.asarray(image.convert('L')).max() < 60
    # What lies beyond the page is white paper.
    corner = np.asarray(render(slanted, upright))[:3, :3]
    assert corner.min() > 250


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([*TURNS.values(), rotation(12), rotation(-40)]), max_size=4),
       st.tuples(st.floats(0, 80), st.floats(0, 60), st.floats(1, 40), st.floats(1, 40)))
def test_there_and_back_through_any_turns(turns, box):
    frame = Frame('p', (333, 222), (10, 20, 310, 200), (280, 168))
    for linear in turns:
        frame = turned_frame(frame, linear, LIMITS)
    x, y, width, height = box
    corners = [(x, y), (x + width, y + height)]
    for point in corners:
        assert frame.matrix.inverse().point(*frame.matrix.point(*point)) == pytest.approx(
            point, abs=1e-6)
    hull = frame.to_page((x, y, x + width, y + height))
    for px, py in (frame.matrix.point(*point) for point in corners):
        assert hull[0] - 1e-6 <= px <= hull[2] + 1e-6
        assert hull[1] - 1e-6 <= py <= hull[3] + 1e-6
    # The image still shows all that it showed: the hull only ever grows.
    shown = frame.to_page((0, 0, *frame.box_size))
    assert shown[0] <= 10.001 and shown[1] <= 20.001
    assert shown[2] >= 309.999 and shown[3] >= 199.999
