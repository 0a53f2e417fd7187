"""Coordinate frames: from pixels the encoder sees to pixels of the page, and back."""

import dataclasses
import math

from vrag_jax.perception.affine import IDENTITY, Affine, Box


def box_fault(box: Box) -> str | None:
    """Returns why a box (x1, y1, x2, y2) is unusable on any image, or None."""
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return 'the box has a coordinate that is not finite'
    if min(box) < 0:
        return 'the box has a negative coordinate'
    if x2 <= x1 or y2 <= y1:
        return 'the box has no area'
    return None


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where on a page an image lies, how it is turned, and at what size the encoder sees it.

    Boxes are x1, y1, x2, y2 with the origin at the top left corner; pixel (i, j)
    covers [i, i + 1] x [j, j + 1]. An image is a region of a canvas, which is the page as it
    is, or rotated, flipped or straightened. All of it is in pixels of the page, also for
    a crop of a turned crop, so frames need no chain of parents.

    Attributes:
      page_id: the page.
      page_size: width and height of the full-resolution page.
      region: the part of the canvas that the image shows, in page pixels.
      encoder_size: width and height of the image as the encoder sees it.
      box_size: width and height in whose pixels boxes on the image are given, where these
        are not `encoder_size` (see `PixelLimits.two_steps`). What is called encoder pixels
        of a box is meant in this size.
      canvas: maps the canvas to the page; its pixels are as large as the page's.
      canvas_size: width and height of the canvas; not given, it is `page_size`.
    """

    page_id: str
    page_size: tuple[int, int]
    region: Box
    encoder_size: tuple[int, int]
    box_size: tuple[int, int] = (0, 0)
    canvas: Affine = IDENTITY
    canvas_size: tuple[int, int] = (0, 0)

    def __post_init__(self):
        if self.canvas_size == (0, 0):
            object.__setattr__(self, 'canvas_size', self.page_size)
        left, top, right, bottom = self.region
        width, height = self.canvas_size
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f'region {self.region} must have an area and lie inside the page, '
                             f'which is {width} x {height} pixels as it is turned')
        if min(self.encoder_size) < 1:
            raise ValueError(f'encoder_size must be positive, got {self.encoder_size}')
        if self.box_size == (0, 0):
            object.__setattr__(self, 'box_size', self.encoder_size)

    @property
    def shows_whole_page(self) -> bool:
        return tuple(self.region) == (0, 0, *self.canvas_size)

    @property
    def matrix(self) -> Affine:
        """Maps points in encoder pixels to page pixels."""
        scale_x, scale_y = self._scale
        left, top = self.region[:2]
        return self.canvas.after(Affine(scale_x, 0.0, left, 0.0, scale_y, top))

    def to_page(self, box: Box) -> Box:
        """Maps a box from encoder pixels to page pixels; of a tilted one, returns the hull."""
        return self.to_canvas(box) if self.canvas == IDENTITY else self.matrix.hull(box)

    def from_page(self, box: Box) -> Box:
        """Maps a box from page pixels to encoder pixels; of a tilted one, returns the hull."""
        if self.canvas != IDENTITY:
            return self.matrix.inverse().hull(box)
        scale_x, scale_y = self._scale
        left, top = self.region[:2]
        x1, y1, x2, y2 = box
        return ((x1 - left) / scale_x, (y1 - top) / scale_y,
                (x2 - left) / scale_x, (y2 - top) / scale_y)

    def to_canvas(self, box: Box) -> Box:
        """Maps a box from encoder pixels to pixels of the canvas."""
        scale_x, scale_y = self._scale
        left, top = self.region[:2]
        x1, y1, x2, y2 = box
        return (left + x1 * scale_x, top + y1 * scale_y, left + x2 * scale_x, top + y2 * scale_y)

    @property
    def _scale(self) -> tuple[float, float]:
        """Page pixels a pixel of `box_size`, along x and y."""
        left, top, right, bottom = self.region
        return (right - left) / self.box_size[0], (bottom - top) / self.box_size[1]
