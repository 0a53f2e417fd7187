"""Images as the encoder sees them: a page shown whole, a region cropped and zoomed, or turned."""

import dataclasses
import functools
import math
import operator

from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from vrag_jax.perception.affine import IDENTITY, Affine, Box, shift
from vrag_jax.perception.frames import Frame, box_fault

# smart_resize refuses images whose sides differ by more than this factor.
MAX_ASPECT = 200

# Bounds of the area in the image processor of the published checkpoints: 4 to 16384 tokens.
PROCESSOR_PIXELS = (3136, 12_845_056)

# A box may reach this share of the image's width or height beyond its edge, and
# is clamped; further out it is invalid.
OUTSIDE_TOLERANCE = 0.5

# Page pixels: what floating point adds to a whole coordinate on its way through
# a frame must not add a row of pixels to a crop.
_ROUNDING_SLACK = 1e-6


class RegionError(ValueError):
    """A box that cannot be cropped; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class PixelLimits:
    """Bounds of an image's area as the encoder sees it.

    Attributes:
      min_pixels, max_pixels: least and greatest width times height.
      factor: width and height are multiples of it (patch size times merge size).
      two_steps: whether an image is scaled to the bounds first, its sides cut off to whole
        pixels, and to multiples of `factor` then, as in the reference's code: boxes are in
        the frame of the first size, the encoder sees the second.
    """

    min_pixels: int
    max_pixels: int
    factor: int = 28
    two_steps: bool = False

    def __post_init__(self):
        if self.factor < 1:
            raise ValueError(f'factor must be positive, got {self.factor}')
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError('need 0 < min_pixels <= max_pixels, got '
                             f'{self.min_pixels} and {self.max_pixels}')
        if not any(_columns(rows, self) for rows in range(1, self._cells + 1)):
            raise ValueError(
                f'no image with sides that are multiples of {self.factor} has between '
                f'min_pixels = {self.min_pixels} and max_pixels = {self.max_pixels} pixels')

    @property
    def _cells(self) -> int:
        """Most cells of factor x factor pixels in an image."""
        return self.max_pixels // self.factor**2

    @property
    def max_aspect(self) -> int:
        """Ratio of the sides beyond which an image has to be distorted."""
        return min(MAX_ASPECT, self._cells)


def _columns(rows: int, limits: PixelLimits) -> range:
    """Column counts with which `rows` rows of cells make an allowed image."""
    cell = limits.factor**2
    fewest = max(-(-limits.min_pixels // (cell * rows)), -(-rows // MAX_ASPECT))
    most = min(limits.max_pixels // (cell * rows), rows * MAX_ASPECT)
    return range(fewest, most + 1)


@functools.lru_cache(maxsize=4096)
def encoder_size(width: int, height: int, limits: PixelLimits) -> tuple[int, int]:
    """Returns the size at which the encoder sees an image; the aspect is kept.

    It is transformers' `smart_resize` wherever that gives a size it would leave
    unchanged itself. Where it does not (long strips, narrow limits, ratios above
    200) the allowed size of nearest aspect is taken, so that the image processor
    never resizes again and boxes stay in the frame of what the encoder saw.

    Args:
      width, height: of the image, in pixels.
      limits: bounds of the result.

    Returns:
      Width and height: multiples of `limits.factor`, with an area within the
      limits and a ratio of at most 200.

    Raises:
      ValueError: if the image has no area.
    """
    if width < 1 or height < 1:
        raise ValueError(f'an image must have an area, got {width} x {height}')
    if limits.two_steps:
        width, height = box_size(width, height, limits)
    bounds = PROCESSOR_PIXELS if limits.two_steps else (limits.min_pixels, limits.max_pixels)
    if max(width, height) <= MAX_ASPECT * min(width, height):
        rows, columns = (side // limits.factor for side in smart_resize(
            height, width, limits.factor, *bounds))
        # The second of two steps rounds, and may leave the bounds by half a row or column.
        if columns in _columns(rows, limits) or limits.two_steps and min(rows, columns) > 0:
            return columns * limits.factor, rows * limits.factor
    return _nearest_size(width / height, limits)


@functools.lru_cache(maxsize=4096)
def box_size(width: int, height: int, limits: PixelLimits) -> tuple[int, int]:
    """Returns the size in whose pixels boxes on an image are given.

    It is `encoder_size` but where `limits.two_steps`: there an area above the bounds is
    scaled down to them, one below is scaled up, and the sides are cut off to whole pixels.

    Args:
      width, height: of the image, in pixels.
      limits: bounds of the area.
    """
    if not limits.two_steps:
        return encoder_size(width, height, limits)
    for bound, outside in ((limits.max_pixels, operator.gt), (limits.min_pixels, operator.lt)):
        if outside(width * height, bound):
            scale = math.sqrt(bound / (width * height))
            width, height = max(1, int(width * scale)), max(1, int(height * scale))
    return width, height


def _nearest_size(aspect: float, limits: PixelLimits) -> tuple[int, int]:
    """Returns the allowed size of nearest aspect; of several, the largest."""
    best = (math.inf, 0, 0)
    for rows in range(1, limits._cells + 1):
        allowed = _columns(rows, limits)
        if allowed:
            columns = min(max(round(rows * aspect), allowed[0]), allowed[-1])
            distortion = abs(math.log(columns / rows / aspect))
            best = min(best, (round(distortion, 9), -columns * rows, rows))
    _, area, rows = best
    return -area // rows * limits.factor, rows * limits.factor


def show_page(
    page_image: Image.Image, page_id: str, limits: PixelLimits
) -> tuple[Image.Image, Frame]:
    """Returns a whole page at the size the encoder sees, RGB, and its frame."""
    width, height = page_image.size
    frame = Frame(page_id, (width, height), (0, 0, width, height),
                  encoder_size(width, height, limits), box_size(width, height, limits))
    return render(page_image, frame), frame


def crop_and_zoom(
    page_image: Image.Image, frame: Frame, box: Box, limits: PixelLimits, padding: float = 0
) -> tuple[Image.Image, Frame]:
    """Cuts a box out of the full-resolution page and resizes it for the encoder.

    Args:
      page_image: the page, of `frame.page_size`.
      frame, box, limits, padding: as in `crop_frame`.

    Returns:
      The RGB image at the size the encoder sees, and its frame.

    Raises:
      RegionError: if `check_box` finds the box unusable.
      ValueError: if `page_image` is not of `frame.page_size`.
    """
    cut = crop_frame(frame, box, limits, padding)
    return render(page_image, cut), cut


def crop_frame(frame: Frame, box: Box, limits: PixelLimits, padding: float = 0) -> Frame:
    """Returns the frame of a crop: what is really cut, and how large it is shown.

    The box is clamped to the image it was given on, then padded (padding may
    reach beyond that image, up to the edge of the page as it is turned), mapped to the
    canvas, rounded outwards to whole page pixels, and widened if it is a strip too narrow
    for the encoder.

    Args:
      frame: the image the box was given on, a page or any crop of it.
      box: x1, y1, x2, y2 in encoder pixels of `frame`.
      limits: bounds of the crop's area as the encoder sees it.
      padding: added on each side, in encoder pixels of `frame`.

    Raises:
      RegionError: if `check_box` finds the box unusable.
    """
    columns, rows = _canvas_pixels(frame, box, padding)
    width, height = frame.canvas_size
    longest = max(columns[1] - columns[0], rows[1] - rows[0])
    shortest = math.ceil(longest / limits.max_aspect)
    left, right = _widen(columns, shortest, width)
    top, bottom = _widen(rows, shortest, height)
    return _with_region(frame, (left, top, right, bottom), limits)


def _with_region(frame: Frame, region: tuple[int, int, int, int], limits: PixelLimits) -> Frame:
    left, top, right, bottom = region
    return dataclasses.replace(
        frame, region=region, encoder_size=encoder_size(right - left, bottom - top, limits),
        box_size=box_size(right - left, bottom - top, limits))


def turn(page_image: Image.Image, frame: Frame, linear: Affine, limits: PixelLimits
         ) -> tuple[Image.Image, Frame]:
    """Rotates, flips or straightens an image; what it shows is cut anew out of the page.

    Args:
      page_image: the page, of `frame.page_size`.
      frame, linear, limits: as in `turned_frame`.

    Returns:
      The RGB image at the size the encoder sees, and its frame.
    """
    turned = turned_frame(frame, linear, limits)
    return render(page_image, turned), turned


def turned_frame(frame: Frame, linear: Affine, limits: PixelLimits) -> Frame:
    """Returns the frame of an image after it was rotated, flipped or straightened.

    It shows what the image showed; where the turn is no quarter turn, the upright box around
    that.

    Args:
      frame: of the image, whose page may have been turned before.
      linear: e.g. `affine.rotation(90)`; any shift in it is ignored.
      limits: bounds of the area as the encoder sees it.
    """
    from_page = linear.after(frame.canvas.inverse())
    left, top, right, bottom = from_page.hull((0, 0, *frame.page_size))
    to_origin = shift(-left, -top)
    size = (math.ceil(right - left - _ROUNDING_SLACK), math.ceil(bottom - top - _ROUNDING_SLACK))
    x1, y1, x2, y2 = to_origin.after(linear).hull(frame.region)
    (x1, x2), (y1, y2) = _whole_pixels(x1, x2, size[0]), _whole_pixels(y1, y2, size[1])
    # On the old canvas the region would not be inside: both change at once.
    turned = Frame(frame.page_id, frame.page_size, (x1, y1, x2, y2), frame.encoder_size,
                   canvas=to_origin.after(from_page).inverse(), canvas_size=size)
    return _with_region(turned, (x1, y1, x2, y2), limits)


def crop_at_page_size(frame: Frame, box: Box) -> Frame:
    """Returns the frame of a crop that is shown at the page's own resolution.

    The box is clamped, mapped and rounded outwards as in `crop_frame`.

    Args:
      frame: the image the box was given on, a page or any crop of it.
      box: x1, y1, x2, y2 in encoder pixels of `frame`.

    Raises:
      RegionError: if `check_box` finds the box unusable.
    """
    (left, right), (top, bottom) = _canvas_pixels(frame, box, 0)
    return dataclasses.replace(frame, region=(left, top, right, bottom),
                               encoder_size=(right - left, bottom - top), box_size=(0, 0))


def _canvas_pixels(frame: Frame, box: Box, padding: float
                   ) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the whole columns and rows of the canvas that a box covers."""
    reason = check_box(box, frame)
    if reason is not None:
        raise RegionError(reason)
    x1, y1 = box[:2]
    x2, y2 = map(min, box[2:], frame.box_size)
    left, top, right, bottom = frame.to_canvas(
        (x1 - padding, y1 - padding, x2 + padding, y2 + padding))
    width, height = frame.canvas_size
    return _whole_pixels(left, right, width), _whole_pixels(top, bottom, height)


def check_box(box: Box, frame: Frame) -> str | None:
    """Returns why a box cannot be used on an image, or None if it can.

    A box that reaches over the right or lower edge by at most half the image's
    width or height (`OUTSIDE_TOLERANCE`) is usable: it is clamped.

    Args:
      box: x1, y1, x2, y2 in encoder pixels of `frame`.
      frame: the image it was given on.
    """
    fault = box_fault(box)
    if fault:
        return fault
    width, height = frame.box_size
    x1, y1, x2, y2 = box
    if x1 >= width or y1 >= height:
        return f'the box lies outside the image, which is {width} x {height} pixels'
    if x2 > (1 + OUTSIDE_TOLERANCE) * width or y2 > (1 + OUTSIDE_TOLERANCE) * height:
        return f'the box reaches far outside the image, which is {width} x {height} pixels'
    return None


def _whole_pixels(start: float, stop: float, size: int) -> tuple[int, int]:
    """Rounds an interval outwards to whole pixels of [0, size]; at least one."""
    first = min(max(math.floor(start + _ROUNDING_SLACK), 0), size - 1)
    last = min(max(math.ceil(stop - _ROUNDING_SLACK), first + 1), size)
    return first, last


def _widen(interval: tuple[int, int], length: int, size: int) -> tuple[int, int]:
    """Grows an interval about its centre to `length`, as far as [0, size] allows."""
    start, stop = interval
    length = min(length, size)
    if stop - start >= length:
        return interval
    start = min(max((start + stop - length) // 2, 0), size - length)
    return start, start + length


def render(page_image: Image.Image, frame: Frame) -> Image.Image:
    """Returns the image of a frame, RGB: its region, resized as a policy's image processor would.

    Args:
      page_image: the page, of `frame.page_size`.
      frame: what is shown of it.

    Raises:
      ValueError: if `page_image` is not of `frame.page_size`.
    """
    if page_image.size != frame.page_size:
        raise ValueError(f'page {frame.page_id!r} is {page_image.size}, '
                         f'but its frame says {frame.page_size}')
    left, top, right, bottom = map(int, frame.region)
    if frame.canvas != IDENTITY:
        cut = _cut_turned(page_image, frame.canvas.after(shift(left, top)),
                          (right - left, bottom - top))
    else:
        cut = _cut(page_image, (left, top, right, bottom))
    if frame.box_size != frame.encoder_size:
        cut = cut.resize(frame.box_size, Image.Resampling.BICUBIC)
    return cut.resize(frame.encoder_size, Image.Resampling.BICUBIC)


def _cut(page_image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Returns a part of a page, RGB; one of 16 megapixels is not copied where it is all of it."""
    if box != (0, 0, *page_image.size):
        page_image = page_image.crop(box)
    return page_image if page_image.mode == 'RGB' else page_image.convert('RGB')


def _cut_turned(page_image: Image.Image, to_page: Affine, size: tuple[int, int]) -> Image.Image:
    """Returns a part of a turned page, RGB, white where it reaches beyond the page.

    Args:
      page_image: the page as it is.
      to_page: maps pixels of the part to pixels of the page.
      size: width and height of the part.
    """
    x1, y1, x2, y2 = to_page.hull((0, 0, *size))
    width, height = page_image.size
    # With the pixels around it that cubic interpolation looks at.
    left, top = max(0, math.floor(x1) - 2), max(0, math.floor(y1) - 2)
    right, bottom = min(width, math.ceil(x2) + 2), min(height, math.ceil(y2) + 2)
    around = _cut(page_image, (left, top, max(right, left + 1), max(bottom, top + 1)))
    matrix = shift(-left, -top).after(to_page)
    how = Image.Resampling.NEAREST if matrix.keeps_pixels else Image.Resampling.BICUBIC
    return around.transform(
        size, Image.Transform.AFFINE, tuple(matrix), how, fillcolor='white')
