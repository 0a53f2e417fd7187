"""Showing pages, cropping and zooming: sizes, regions and pixels."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from vrag_jax.perception.frames import Frame
from vrag_jax.perception.image_ops import (
    PixelLimits,
    RegionError,
    box_size,
    check_box,
    crop_and_zoom,
    crop_at_page_size,
    crop_frame,
    encoder_size,
    show_page,
)

PAPER = PixelLimits(256 * 28 * 28, 512 * 28 * 28)
TINY = PixelLimits(4 * 28 * 28, 16 * 28 * 28)
EXACT = PixelLimits(12 * 28 * 28, 12 * 28 * 28)
LIMITS = st.sampled_from([PAPER, TINY, EXACT, PixelLimits(1, 10**7), PixelLimits(4096, 9000, 32)])
SIDES = st.integers(1, 20000)
FRACTIONS = st.floats(0, 1, width=32)


def gradient_page(width: int, height: int) -> Image.Image:
    """An image whose red is the column and whose green is the row of each pixel."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=-1))


@settings(deadline=None, max_examples=300)
@given(SIDES, SIDES, LIMITS)
def test_encoder_size_is_one_that_the_image_processor_leaves_alone(width, height, limits):
    size = encoder_size(width, height, limits)
    assert size[0] % limits.factor == size[1] % limits.factor == 0
    assert limits.min_pixels <= size[0] * size[1] <= limits.max_pixels
    again = smart_resize(size[1], size[0], limits.factor, limits.min_pixels, limits.max_pixels)
    assert again == (size[1], size[0])


@pytest.mark.parametrize('width, height', [
    (5334, 3000), (3000, 5334), (1654, 2339), (640, 480), (300, 300), (100, 90), (2000, 500)])
def test_encoder_size_of_usual_images_is_smart_resize(width, height):
    expected = smart_resize(height, width, 28, PAPER.min_pixels, PAPER.max_pixels)
    assert encoder_size(width, height, PAPER) == expected[::-1]


@settings(deadline=None)
@given(SIDES, SIDES)
def test_aspect_is_kept_up_to_rounding_to_whole_cells(width, height):
    assume(max(width, height) <= 8 * min(width, height))
    columns, rows = (side // 28 for side in encoder_size(width, height, PAPER))
    # Either side is off by less than one cell from the same scaled image.
    assert (columns - 1) / (rows + 1) < width / height < (columns + 1) / (rows - 1)


def test_strips_get_the_nearest_size_there_is():
    # 16 cells at most: a strip of 1000:1 becomes one row of 16.
    assert encoder_size(1000, 1, TINY) == (16 * 28, 28)
    assert encoder_size(1, 1000, TINY) == (28, 16 * 28)
    # Exactly 12 cells: 4:3 becomes 4 x 3, 12:1 becomes 12 x 1.
    assert encoder_size(400, 300, EXACT) == (4 * 28, 3 * 28)
    assert encoder_size(120, 10, EXACT) == (12 * 28, 28)


@pytest.mark.parametrize('arguments, message', [
    ((0, 100), 'min_pixels'), ((200, 100), 'min_pixels'), ((1, 27 * 28), 'multiples of 28'),
    ((785, 1567), 'multiples of 28'), ((1, 100, 0), 'factor')])
def test_limits_that_no_image_meets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelLimits(*arguments)


def test_page_is_shown_whole():
    page = gradient_page(200, 100)
    shown, frame = show_page(page, 'doc_3', TINY)
    assert frame == Frame('doc_3', (200, 100), (0, 0, 200, 100), encoder_size(200, 100, TINY))
    expected = page.resize(frame.encoder_size, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(expected))


def test_grey_and_palette_pages_are_shown_in_rgb():
    for mode in ('L', 'P', '1', 'RGBA'):
        assert show_page(Image.new(mode, (60, 60)), 'p', TINY)[0].mode == 'RGB'


@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA'])
def test_a_whole_page_is_resized_and_nothing_else_and_left_alone(mode):
    rng = np.random.default_rng(0)
    page = Image.fromarray(rng.integers(0, 256, (84, 168, 3), np.uint8)).convert(mode)
    before = page.tobytes()
    for size in ((56, 56), (28, 112), (84, 168)):
        limits = PixelLimits(size[0] * size[1], size[0] * size[1])
        shown, frame = show_page(page, 'p', limits)
        want = page.crop((0, 0, *page.size)).convert('RGB').resize(
            frame.encoder_size, Image.Resampling.BICUBIC)
        assert shown.tobytes() == want.tobytes() and shown is not page
        shown.putpixel((0, 0), (1, 2, 3))
    assert page.tobytes() == before


def test_crop_is_cut_from_the_full_resolution_page():
    page = gradient_page(240, 120)
    frame = Frame('p', (240, 120), (0, 0, 240, 120), (112, 56))
    crop, cut = crop_and_zoom(page, frame, (14, 7, 56, 28), TINY)
    # 240 / 112 page pixels an encoder pixel: exactly columns 30-120 and rows 15-60.
    assert cut.region == (30, 15, 120, 60)
    expected = page.crop((30, 15, 120, 60)).resize(cut.encoder_size, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(expected))


def test_second_crop_is_in_the_frame_of_the_first():
    page = gradient_page(240, 120)
    first = Frame('p', (240, 120), (30, 15, 120, 60), (180, 90))
    _, cut = crop_and_zoom(page, first, (20, 10, 60, 50), TINY)
    assert cut.region == (40, 20, 60, 40)


def test_boxes_are_rounded_outwards():
    frame = Frame('p', (100, 100), (0, 0, 100, 100), (112, 112))
    # Encoder pixel 12 is page pixel 10.7, encoder pixel 55 is page pixel 49.1.
    assert crop_frame(frame, (12, 12, 55, 55), TINY).region == (10, 10, 50, 50)


def test_padding_is_in_encoder_pixels_and_ends_at_the_page():
    frame = Frame('p', (400, 400), (100, 100, 300, 300), (100, 100))
    # 2 page pixels an encoder pixel; padding may leave the crop, not the page.
    assert crop_frame(frame, (20, 20, 40, 40), TINY, 10).region == (120, 120, 200, 200)
    assert crop_frame(frame, (0, 0, 40, 40), TINY, 10).region == (80, 80, 200, 200)
    assert crop_frame(frame, (0, 0, 100, 100), TINY, 90).region == (0, 0, 400, 400)


def test_boxes_over_the_edge_are_clamped():
    frame = Frame('p', (200, 200), (0, 0, 200, 200), (100, 100))
    assert crop_frame(frame, (50, 60, 150, 150), TINY).region == (100, 120, 200, 200)


def test_strips_are_widened_about_their_centre():
    frame = Frame('p', (1600, 400), (0, 0, 1600, 400), (1600, 400))
    # TINY has room for 16:1, so 1600 columns need 100 rows.
    assert crop_frame(frame, (0, 200, 1600, 202), TINY).region == (0, 151, 1600, 251)
    assert crop_frame(frame, (0, 0, 1600, 2), TINY).region == (0, 0, 1600, 100)
    assert crop_frame(frame, (0, 398, 1600, 400), TINY).region == (0, 300, 1600, 400)


@pytest.mark.parametrize('box, reason', [
    ((float('nan'), 0, 10, 10), 'not finite'), ((0, 0, float('inf'), 10), 'not finite'),
    ((-1, 0, 10, 10), 'negative'), ((10, 0, 10, 10), 'no area'), ((0, 10, 10, 5), 'no area'),
    ((100, 0, 120, 10), 'outside the image, which is 100 x 50'), ((0, 50, 10, 60), 'outside'),
    ((0, 0, 151, 10), 'far outside'), ((0, 0, 10, 75.5), 'far outside'),
])
def test_unusable_boxes(box, reason):
    frame = Frame('p', (1000, 500), (0, 0, 1000, 500), (100, 50))
    assert reason in check_box(box, frame)
    with pytest.raises(RegionError, match=reason):
        crop_and_zoom(Image.new('RGB', (1000, 500)), frame, box, TINY)


@pytest.mark.parametrize('box', [(0, 0, 100, 50), (99, 49, 150, 75), (0, 0, 0.001, 0.001)])
def test_usable_boxes(box):
    assert check_box(box, Frame('p', (1000, 500), (0, 0, 1000, 500), (100, 50))) is None


def test_a_page_of_another_size_than_its_frame_is_refused():
    frame = Frame('doc_1', (100, 100), (0, 0, 100, 100), (56, 56))
    with pytest.raises(ValueError, match="'doc_1' is \\(100, 90\\)"):
        crop_and_zoom(Image.new('RGB', (100, 90)), frame, (0, 0, 10, 10), TINY)


def draw_box(data, frame: Frame) -> tuple[float, float, float, float]:
    """Any box with an area on an image, from a fraction of a pixel to all of it."""
    width, height = frame.encoder_size
    x1, x2 = sorted(data.draw(FRACTIONS) * width for _ in range(2))
    y1, y2 = sorted(data.draw(FRACTIONS) * height for _ in range(2))
    assume(check_box((x1, y1, x2, y2), frame) is None)
    return x1, y1, x2, y2


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_box_any_size_crops_of_crops(data):
    page_size = data.draw(st.tuples(SIDES, SIDES))
    limits = data.draw(LIMITS)
    frame = Frame('p', page_size, (0, 0, *page_size), encoder_size(*page_size, limits))
    for _ in range(data.draw(st.integers(1, 4))):
        box = draw_box(data, frame)
        wanted = frame.to_page(box)
        cut = crop_frame(frame, box, limits)
        got = cut.region
        # The crop holds the box, whole pixels of the page, at an allowed size.
        assert all(value == int(value) for value in got)
        assert got[0] <= wanted[0] + 1e-6 and got[1] <= wanted[1] + 1e-6
        assert got[2] >= wanted[2] - 1e-6 and got[3] >= wanted[3] - 1e-6
        assert cut.encoder_size == encoder_size(
            int(got[2] - got[0]), int(got[3] - got[1]), limits)
        # Sides that need no widening are within one pixel of what was asked for.
        longest = max(got[2] - got[0], got[3] - got[1])
        for low, high in ((0, 2), (1, 3)):
            if got[high] - got[low] > longest / limits.max_aspect + 1:
                assert wanted[low] - got[low] <= 1 and got[high] - wanted[high] <= 1
        # What was asked for, seen on the crop and mapped back, is the same box.
        assert cut.to_page(cut.from_page(wanted)) == pytest.approx(wanted, abs=1e-3)
        frame = cut


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_pixels_of_crops_of_crops_are_where_the_frame_says(data):
    size = data.draw(st.tuples(st.integers(8, 250), st.integers(8, 250)))
    page = gradient_page(*size)
    image, frame = show_page(page, 'p', TINY)
    for _ in range(2):
        image, frame = crop_and_zoom(page, frame, draw_box(data, frame), TINY)
        assert image.size == frame.encoder_size
        width, height = image.size
        red, green, _ = image.getpixel((width // 2, height // 2))
        # The value of a pixel is its index; its centre is half a pixel further.
        x, y, _, _ = frame.to_page((width // 2 + 0.5, height // 2 + 0.5, width, height))
        assert abs(red + 0.5 - x) <= 1 and abs(green + 0.5 - y) <= 1


def test_a_crop_at_page_size_keeps_the_pages_own_pixels():
    frame = Frame('p', (400, 200), (100, 50, 300, 150), (100, 100))  # 2 x 1 page pixels
    crop = crop_at_page_size(frame, (10, 20.5, 30.2, 40))
    assert crop.region == (120, 70, 161, 90) and crop.encoder_size == (41, 20)
    assert crop.page_size == (400, 200)
    # Clamped to the image it was given on.
    assert crop_at_page_size(frame, (90, 90, 120, 130)).region == (280, 140, 300, 150)
    with pytest.raises(RegionError, match='no area'):
        crop_at_page_size(frame, (10, 10, 10, 20))


TWO_STEPS = PixelLimits(256 * 28 * 28, 512 * 28 * 28, two_steps=True)


@pytest.mark.parametrize(('page', 'boxes', 'seen'), [
    # By hand: sqrt(401408 / 786432) = 0.71443; 731.57 and 548.68 are cut off, and rounded to
    # multiples of 28 then. The other: sqrt(401408 / 16002000) = 0.15838.
    ((1024, 768), (731, 548), (728, 560)),
    ((5334, 3000), (844, 475), (840, 476)),
    # Too small: sqrt(200704 / 60000) = 1.82895. Inside the bounds: as it is.
    ((300, 200), (548, 365), (560, 364)),
    ((700, 400), (700, 400), (700, 392)),
    # A strip: sqrt(200704 / 83697) = 1.54853; 35.6 and 5635.1.
    ((23, 3639), (35, 5635), (28, 5628)),
])
def test_two_steps_cut_off_and_then_round(page, boxes, seen):
    image, frame = show_page(gradient_page(*page), 'p', TWO_STEPS)
    assert frame.box_size == boxes and frame.encoder_size == image.size == seen
    assert frame.to_page((0, 0, *boxes)) == pytest.approx((0, 0, *page))


def test_in_two_steps_pixels_are_resized_twice_and_boxes_are_of_the_first_size():
    page = gradient_page(1024, 768)
    image, frame = show_page(page, 'p', TWO_STEPS)
    expected = page.resize((731, 548), Image.Resampling.BICUBIC).resize(
        (728, 560), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    # The box of the whole first size is the whole page, though it reaches beyond the second.
    assert crop_frame(frame, (0, 0, 731, 548), TWO_STEPS).region == (0, 0, 1024, 768)
    cut = crop_frame(frame, (100, 50, 300, 150), TWO_STEPS, padding=28)
    scale_x, scale_y = 1024 / 731, 768 / 548
    assert cut.region == (int(72 * scale_x), int(22 * scale_y),
                          int(np.ceil(328 * scale_x)), int(np.ceil(178 * scale_y)))
    assert check_box((731, 0, 740, 5), frame) is not None


@settings(deadline=None, max_examples=200)
@given(SIDES, SIDES)
def test_in_two_steps_every_image_gets_a_size_that_the_encoder_takes(width, height):
    size = encoder_size(width, height, TWO_STEPS)
    assert size[0] % 28 == size[1] % 28 == 0 and min(size) > 0
    if max(size) > 200 * min(size):
        return  # Distorted, as the encoder takes nothing longer.
    boxes = box_size(width, height, TWO_STEPS)
    for side, first in zip(size, boxes, strict=True):
        # Rounded; by more only to the least side there is, or where the ratio is out of bounds.
        assert abs(side - first) <= 14 or side == 28 or max(boxes) > 200 * min(boxes)
