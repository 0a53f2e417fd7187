"""Pages of PDFs: images, texts and word boxes, by PDFium.

PDFium is not thread-safe: one thread of a process may be here at a time.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pypdfium2
from PIL import Image
from pypdfium2 import raw

from vrag_jax.corpus.pdf.annotations import (
    button_glyph,
    field_lines,
    place_lines,
    read_annotations,
)
from vrag_jax.corpus.pdf.characters import read_characters
from vrag_jax.corpus.pdf.fonts import missing_fonts
from vrag_jax.corpus.pdf.geometry import Projection, image_scale, mend_boxes
from vrag_jax.corpus.pdf.glyphs import Glyphs, read_glyphs
from vrag_jax.corpus.pdf.lines import Line, lines_text, lines_words, read_lines
from vrag_jax.corpus.pdf.visible import Visibility
from vrag_jax.corpus.words import Word

_POINTS_PER_INCH = 72


def version() -> str:
    """Returns name and version of the renderer."""
    return f'pdfium {pypdfium2.PDFIUM_INFO}'


@dataclasses.dataclass(frozen=True)
class PdfPage:
    """What a person sees of a page.

    Attributes:
      image: RGBX.
      text: what is seen of the page's text, form fields and annotations, in lines, '' if there
        is none. A word that goes on in the next line is still two: `hyphens.join_lines` knows
        the whole document.
      words: of the text, with boxes.
      font_error: which fonts neither the file nor this machine has, and what to install; the
        image lacks their characters. '' if all are there.
    """

    image: Image.Image
    text: str
    words: list[Word]
    font_error: str


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

    def read(self, number: int, dpi: int, max_pixels: int) -> PdfPage:
        """Renders a page and reads its text.

        Args:
          number: of the page, from 1.
          dpi: of the image.
          max_pixels: of the image; where a page would be larger, dpi is lowered for it.

        Raises:
          ValueError: if the page cannot be read.
        """
        try:
            page = self._document[number - 1]
            try:
                mend_boxes(page)
                width, height = page.get_size()
                scale = image_scale(width, height, dpi / _POINTS_PER_INCH, max_pixels)
                # With four bytes a pixel the image is the bitmap's own memory, not a copy.
                bitmap = page.render(scale=scale, rev_byteorder=True, prefer_bgrx=True,
                                     maybe_alpha=False)
                image = bitmap.to_pil()
                lines, font_error = self._lines(page, number, scale, image.size)
            finally:
                page.close()
        except pypdfium2.PdfiumError as error:
            raise ValueError(str(error)) from error
        return PdfPage(image, lines_text(lines), lines_words(lines, image.size), font_error)

    def _lines(self, page: Any, number: int, scale: float, size: tuple[int, int]
               ) -> tuple[list[Line], str]:
        """Returns the lines of all text that is seen, and which fonts are missing."""
        projection = Projection(page, size)
        visibility = Visibility(page, scale)
        textpage = page.get_textpage()
        try:
            characters = read_characters(textpage.raw)
            lacking, font_error = missing_fonts(characters, visibility.texts)
            lines = read_lines(characters, projection.boxes(characters.boxes),
                               visibility.seen(characters) | lacking)
        finally:
            textpage.close()
        with read_annotations(self._document, page, number - 1) as annotations:
            if annotations is None:
                return lines, font_error
            added, fields = annotations.characters, annotations.fields
            lacking, added_error = missing_fonts(added, ())
            added_lines = read_lines(added, projection.boxes(added.boxes),
                                     visibility.seen(added, added=True) | lacking,
                                     annotations.numbers)
            boxes = [projection.boxes(field.box[None])[0].tolist() for field in fields]
        filled_in = [(field.value, box) for field, box in zip(fields, boxes, strict=True)
                     if not field.is_button]
        buttons = [button_glyph(field, box) for field, box in zip(fields, boxes, strict=True)
                   if field.is_button]
        added_lines = [*field_lines(added_lines, filled_in), *buttons]
        return place_lines(lines, added_lines), font_error or added_error
