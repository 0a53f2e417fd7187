"""Coordinate frames: from pixels the encoder sees to pixels of the page, and back."""

import dataclasses
import math

Box = tuple[float, float, float, float]


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
    """Where on a page an image lies, and at what size the encoder sees it.

    Boxes are x1, y1, x2, y2 with the origin at the top left corner; pixel (i, j)
    covers [i, i + 1] x [j, j + 1]. The region is always in page pixels, also for
    a crop of a crop, so frames need no chain of parents.

    Attributes:
      page_id: the page.
      page_size: width and height of the full-resolution page.
      region: the part of the page that the image shows, in page pixels.
      encoder_size: width and height of the image as the encoder sees it.
      box_size: width and height in whose pixels boxes on the image are given, where these
        are not `encoder_size` (see `PixelLimits.two_steps`). What is called encoder pixels
        of a box is meant in this size.
    """

    page_id: str
    page_size: tuple[int, int]
    region: Box
    encoder_size: tuple[int, int]
    box_size: tuple[int, int] = (0, 0)

    def __post_init__(self):
        left, top, right, bottom = self.region
        width, height = self.page_size
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f'region {self.region} must have an area and lie inside the page '
                             f'of page_size {self.page_size}')
        if min(self.encoder_size) < 1:
            raise ValueError(f'encoder_size must be positive, got {self.encoder_size}')
        if self.box_size == (0, 0):
            object.__setattr__(self, 'box_size', self.encoder_size)

    @property
    def scale(self) -> tuple[float, float]:
        """Page pixels a pixel of `box_size`, along x and y."""
        left, top, right, bottom = self.region
        return (right - left) / self.box_size[0], (bottom - top) / self.box_size[1]

    def to_page(self, box: Box) -> Box:
        """Maps a box from encoder pixels to page pixels."""
        scale_x, scale_y = self.scale
        left, top = self.region[:2]
        x1, y1, x2, y2 = box
        return (left + x1 * scale_x, top + y1 * scale_y, left + x2 * scale_x, top + y2 * scale_y)

    def from_page(self, box: Box) -> Box:
        """Maps a box from page pixels to encoder pixels."""
        scale_x, scale_y = self.scale
        left, top = self.region[:2]
        x1, y1, x2, y2 = box
        return ((x1 - left) / scale_x, (y1 - top) / scale_y,
                (x2 - left) / scale_x, (y2 - top) / scale_y)
