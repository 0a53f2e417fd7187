"""The size of a PDF page, and where its points are in its image."""

import ctypes
import math
from typing import Any

import numpy as np
from pypdfium2 import raw

_MAX_SIDE = 16_383  # Of WebP, the least of all formats.
_FINE = 4096  # PDFium rounds to whole pixels: it is asked for a larger image.


def image_scale(width: float, height: float, scale: float, max_pixels: int) -> float:
    """Returns the largest scale up to `scale` whose image is within the limits.

    Args:
      width, height: of the page in points.
      scale: pixels a point.
      max_pixels: of the image.

    Raises:
      ValueError: if the page has no area.
    """
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f'is {width} x {height} points large')
    scale = min(scale, math.sqrt(max_pixels / (width * height)), _MAX_SIDE / max(width, height))
    # Pixels are counted in whole rows and columns, rounded up.
    while (math.ceil(width * scale) * math.ceil(height * scale) > max_pixels
           or math.ceil(max(width, height) * scale) > _MAX_SIDE):
        scale *= 0.99
    return scale


def mend_boxes(page: Any) -> None:
    """Shows the whole page where its CropBox leaves nothing of it.

    Args:
      page: pypdfium2's page.
    """
    width, height = page.get_size()
    if not (width > 0 and height > 0):
        left, bottom, right, top = page.get_mediabox()
        if right > left and top > bottom:
            page.set_cropbox(left, bottom, right, top)


class Projection:
    """From points of a page to pixels of its image.

    Args:
      page: pypdfium2's page.
      size: width and height of the image.
    """

    def __init__(self, page: Any, size: tuple[int, int]):
        across, down = ctypes.c_int(), ctypes.c_int()
        points = []
        # One as large as a page may be keeps its rounding small.
        for x, y in ((0, 0), (_FINE, 0), (0, _FINE)):
            raw.FPDF_PageToDevice(page, 0, 0, 16 * size[0], 16 * size[1], 0, x, y, across, down)
            points.append((across.value / 16, down.value / 16))
        origin, right, up = np.array(points)
        self._origin = origin
        self._matrix = np.array([right - origin, up - origin]) / _FINE

    def boxes(self, edges: np.ndarray) -> np.ndarray:
        """Returns boxes in pixels.

        Args:
          edges: (boxes, 4) float: left, bottom, right and top in points.

        Returns:
          (boxes, 4) float64: x1, y1, x2, y2, not rounded, nor cut at the image's edges.
        """
        a = edges[:, :2] @ self._matrix + self._origin
        b = edges[:, 2:] @ self._matrix + self._origin
        # On a turned page the corners change places.
        return np.hstack([np.minimum(a, b), np.maximum(a, b)])
