"""Pages of PDFs: images, text layers and word boxes, by PDFium.

PDFium is not thread-safe: one thread of a process may be here at a time.
"""

import ctypes
import math
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pypdfium2
from PIL import Image
from pypdfium2 import raw

from vrag_jax.ingestion.glyphs import Glyphs, read_glyphs
from vrag_jax.ingestion.words import Word

_POINTS_PER_INCH = 72
_MAX_SIDE = 16_383  # Of WebP, the least of all formats.
_HYPHENS = ('\x02', '\ufffe')  # PDFium's marks of a word that goes on in the next line.


def version() -> str:
    """Returns name and version of the renderer."""
    return f'pdfium {pypdfium2.PDFIUM_INFO}'


class Pdf:
    """An open PDF file; a context manager.

    Raises:
      ValueError: if it cannot be read: corrupt, needs a password, has no pages.
    """

    def __init__(self, file: Path):
        # A document without pages is refused with the error of the failure before it, so what
        # is said of it would depend on that: this one makes it always the same.
        raw.FPDF_LoadMemDocument(b'', 0, None)
        try:
            self._document = pypdfium2.PdfDocument(file)
        except pypdfium2.PdfiumError as error:
            raise ValueError('needs a password' if error.err_code == raw.FPDF_ERR_PASSWORD else
                             'cannot be read as a PDF, or has no pages') from error
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Forms in XFA are shown as their fallback page.
            self._document.init_forms()

    def __enter__(self) -> 'Pdf':
        return self

    def __exit__(self, *_: Any) -> None:
        self._document.close()

    def __len__(self) -> int:
        return len(self._document)

    def glyphs(self, number: int) -> Glyphs:
        """Reads what the glyphs of a page look like.

        Args:
          number: of the page, from 1.

        Raises:
          ValueError: if the page cannot be read.
        """
        try:
            page = self._document[number - 1]
            try:
                textpage = page.get_textpage()
                found = read_glyphs(textpage)
                textpage.close()
            finally:
                page.close()
        except pypdfium2.PdfiumError as error:
            raise ValueError(str(error)) from error
        return found

    def read(self, number: int, dpi: int, max_pixels: int
             ) -> tuple[Image.Image, str, list[Word]]:
        """Renders a page and reads its text layer.

        Args:
          number: of the page, from 1.
          dpi: of the image.
          max_pixels: of the image; where a page would be larger, dpi is lowered for it.

        Returns:
          Image (RGBX), text ('' without a text layer), words.

        Raises:
          ValueError: if the page cannot be read.
        """
        try:
            page = self._document[number - 1]
            try:
                width, height = page.get_size()
                scale = _scale(width, height, dpi / _POINTS_PER_INCH, max_pixels)
                # With four bytes a pixel the image is the bitmap's own memory, not a copy.
                bitmap = page.render(scale=scale, rev_byteorder=True, prefer_bgrx=True,
                                     maybe_alpha=False)
                image = bitmap.to_pil()
                textpage = page.get_textpage()
                text = clean_text(textpage.get_text_range())
                words = _words(page, textpage, image.size) if text else []
                textpage.close()
            finally:
                page.close()
        except pypdfium2.PdfiumError as error:
            raise ValueError(str(error)) from error
        return image, text, words


def clean_text(text: str) -> str:
    """Joins words that were hyphenated at line ends; drops control characters.

    Args:
      text: as PDFium returns it: lines end in CR LF.
    """
    for hyphen in _HYPHENS:
        text = text.replace(f'{hyphen}\r\n', '').replace(hyphen, '')
    text = text.replace('\r\n', '\n').replace('\r', '\n')
    return ''.join(c for c in text if c in '\n\t' or unicodedata.category(c) != 'Cc').strip()


def _scale(width: float, height: float, scale: float, max_pixels: int) -> float:
    """Returns the largest scale up to `scale` whose image is within the limits."""
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f'is {width} x {height} points large')
    scale = min(scale, math.sqrt(max_pixels / (width * height)), _MAX_SIDE / max(width, height))
    # Pixels are counted in whole rows and columns, rounded up.
    while (math.ceil(width * scale) * math.ceil(height * scale) > max_pixels
           or math.ceil(max(width, height) * scale) > _MAX_SIDE):
        scale *= 0.99
    return scale


# Left, bottom, right and top in points.
_Edges = tuple[float, float, float, float]


def _words(page: Any, textpage: Any, size: tuple[int, int]) -> list[Word]:
    """Returns the runs of characters between white space, with boxes in pixels.

    A word that goes on in the next line is two.
    """
    words: list[Word] = []
    characters: list[int] = []
    bounds: _Edges | None = None
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    for i in range(textpage.count_chars()):
        code = raw.FPDFText_GetUnicode(textpage, i)
        blank = code == 0 or chr(code) in _HYPHENS or chr(code).isspace()
        edges = None
        # Characters that PDFium has added have no place on the page.
        if not blank and raw.FPDFText_GetCharBox(textpage, i, left, right, bottom, top):
            edges = left.value, bottom.value, right.value, top.value
        next_line = edges and bounds and edges[0] < bounds[0] and (
            edges[3] < bounds[1] or edges[1] > bounds[3])
        if blank or next_line:
            words += _word(page, characters, bounds, size)
            characters, bounds = [], None
        if not blank:
            characters.append(code)
        if edges:
            bounds = edges if bounds is None else (
                min(bounds[0], edges[0]), min(bounds[1], edges[1]),
                max(bounds[2], edges[2]), max(bounds[3], edges[3]))
    return words + _word(page, characters, bounds, size)


def _word(page: Any, characters: list[int], bounds: _Edges | None, size: tuple[int, int]
          ) -> list[Word]:
    """Returns the word, [] if none of it is visible on the page."""
    if bounds is None:
        return []
    x1, y1 = _to_pixels(page, bounds[0], bounds[1], size)
    x2, y2 = _to_pixels(page, bounds[2], bounds[3], size)
    # On a turned page the corners change places.
    box = (max(math.floor(min(x1, x2)), 0), max(math.floor(min(y1, y2)), 0),
           min(math.ceil(max(x1, x2)), size[0]), min(math.ceil(max(y1, y2)), size[1]))
    if box[0] >= box[2] or box[1] >= box[3]:
        return []
    # Characters beyond the basic plane come as two UTF-16 surrogates.
    text = ''.join(map(chr, characters)).encode('utf-16', 'surrogatepass')
    return [Word(text.decode('utf-16', 'ignore'), box)]


def _to_pixels(page: Any, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
    across, down = ctypes.c_int(), ctypes.c_int()
    # PDFium rounds: as if the page were 16 times as large it does so to a 16th of a pixel.
    raw.FPDF_PageToDevice(page, 0, 0, 16 * size[0], 16 * size[1], 0, x, y, across, down)
    return across.value / 16, down.value / 16
