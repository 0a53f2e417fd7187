"""Glyph shapes of a PDF page, and the characters that its text layer maps them to.

A text layer names a character for each glyph (the font's encoding, or its ToUnicode map).
Where that map is wrong the names are nonsense, and the glyphs are not: an `a` that rises as
high as a capital is none. PDFium is not thread-safe: see `pdf`.
"""

import ctypes
import dataclasses
import math
from typing import Any

import numpy as np
from pypdfium2 import raw

_MOST = 800  # Characters looked at; of pages of more, stretches that lie evenly in it.
_STRETCH = 50


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """Characters of a page that are drawn, in the order of the text layer.

    Attributes:
      codes: int [n], Unicode.
      ascents, descents, widths: float [n], of the glyph's box above and below the base line,
        and its width, in ems; NaN of glyphs that are turned by no multiple of 90 degrees.
      fonts: int [n], equal for those of one font of the page.
      boxes: float [n, 4], left, bottom, right and top in points.
      total: characters of the text layer, with those that were not looked at.
    """

    codes: np.ndarray
    ascents: np.ndarray
    descents: np.ndarray
    widths: np.ndarray
    fonts: np.ndarray
    boxes: np.ndarray
    total: int


def read_glyphs(textpage: Any) -> Glyphs:
    """Reads them from a page's text as PDFium has found it."""
    total = textpage.count_chars()
    reader = _Reader(textpage)
    rows = [row for i in _indices(total) if (row := reader.row(i)) is not None]
    table = np.array(rows, np.float64).reshape(-1, 9)
    _, fonts = np.unique(table[:, 4], return_inverse=True)
    return Glyphs(table[:, 0].astype(np.int64), table[:, 1], table[:, 2], table[:, 3],
                  fonts, table[:, 5:9], total)


def _indices(total: int) -> list[int]:
    if total <= _MOST:
        return list(range(total))
    starts = np.linspace(0, total - _STRETCH, _MOST // _STRETCH).astype(int)
    return sorted({i for start in starts for i in range(start, start + _STRETCH)})


class _Reader:
    """Reads a glyph at a time."""

    def __init__(self, textpage: Any):
        self._page = textpage.raw
        self._edges = [ctypes.c_double() for _ in range(4)]
        self._origin = [ctypes.c_double() for _ in range(2)]
        # Font, em and quarter turns of a text object, which has many glyphs.
        self._objects: dict[int, tuple[int, float, float]] = {}

    def row(self, i: int) -> tuple[float, ...] | None:
        """Returns code, ascent, descent, width, font and box; None if nothing is drawn."""
        code = raw.FPDFText_GetUnicode(self._page, i)
        if (not raw.FPDFText_GetCharBox(self._page, i, *self._edges)
                or raw.FPDFText_IsGenerated(self._page, i) == 1):
            return None
        left, right, bottom, top = (edge.value for edge in self._edges)
        font, em, quarter = self._object(i)
        if left >= right or bottom >= top or not em > 0:
            return None
        raw.FPDFText_GetCharOrigin(self._page, i, *self._origin)
        x, y = self._origin[0].value, self._origin[1].value
        # In the glyph's own frame: turned back by its angle.
        turns = round(quarter) % 4
        up, down = ((top - y, y - bottom), (x - left, right - x), (y - bottom, top - y),
                    (right - x, x - left))[turns]
        width = top - bottom if turns % 2 else right - left
        if abs(quarter - round(quarter)) > 0.03:
            up, down, width = math.nan, math.nan, math.nan
        return code, up / em, down / em, width / em, font, left, bottom, right, top

    def _object(self, i: int) -> tuple[int, float, float]:
        found = raw.FPDFText_GetTextObject(self._page, i)
        address = ctypes.cast(found, ctypes.c_void_p).value or 0
        if address not in self._objects:
            matrix = raw.FS_MATRIX()
            raw.FPDFText_GetMatrix(self._page, i, matrix)
            font = ctypes.cast(raw.FPDFTextObj_GetFont(found), ctypes.c_void_p).value or 0
            em = raw.FPDFText_GetFontSize(self._page, i) * math.hypot(matrix.c, matrix.d)
            self._objects[address] = font, em, math.degrees(math.atan2(matrix.b, matrix.a)) / 90
        return self._objects[address]
