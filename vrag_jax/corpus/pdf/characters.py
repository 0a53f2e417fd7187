"""The characters of a PDF page, as PDFium finds them, and where they stand."""

import ctypes
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pypdfium2 import raw

# PDFium's marks of a hyphen at the end of a line whose word goes on in the next.
HYPHENS = ('\x02', '\ufffe')
UNPAINTED = (3, 7)  # Text rendering modes: neither filled nor stroked.
_NOWHERE = (np.nan, np.nan, np.nan, np.nan)
# Of the longer side of a character; one without an outline gets a thousandth.
_THINNEST = 0.002
_DEPTH = 16  # Of forms in forms; a form that holds itself has no end.


@dataclasses.dataclass
class Characters:
    """Characters in the order in which PDFium reads a page.

    Attributes:
      text: of each character; '' for what has none. Spaces and line ends are among them, put
        in by PDFium where it sees gaps.
      boxes: (characters, 4) float64: left, bottom, right, top in points; NaN where a character
        has no place on the page.
      shapeless: (characters,) bool: no outline is known of them; their boxes are those that the
        line leaves them.
      owners: (characters,) int64: which of `objects` paints it, -1 for none.
      objects: text objects of the page, as PDFium's handles.
      modes: (objects,) int64: their text rendering modes (ISO 32000-1, table 106).
    """

    text: list[str]
    boxes: np.ndarray
    shapeless: np.ndarray
    owners: np.ndarray
    objects: list[Any]
    modes: np.ndarray

    @property
    def blank(self) -> np.ndarray:
        """(characters,) bool: white space, and what has no text or no place."""
        spaces = np.fromiter((not text or text.isspace() for text in self.text), bool,
                             len(self.text))
        return spaces | np.isnan(self.boxes[:, 0])


def _fast(function: Any, result: Any, *arguments: Any) -> Any:
    """The same function of PDFium with handles as plain numbers, for use on each character."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    return ctypes.CFUNCTYPE(result, *arguments)(address)  # type: ignore[arg-type]


_unicode = _fast(raw.FPDFText_GetUnicode, ctypes.c_uint, ctypes.c_void_p, ctypes.c_int)
_text_object = _fast(raw.FPDFText_GetTextObject, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_char_box = _fast(raw.FPDFText_GetCharBox, ctypes.c_int, ctypes.c_void_p, ctypes.c_int,
                  *[ctypes.c_void_p] * 4)


def read_characters(textpage: Any) -> Characters:
    """Returns the characters of a PDFium text page.

    Args:
      textpage: raw handle.
    """
    count = max(raw.FPDFText_CountChars(textpage), 0)
    address = ctypes.addressof(textpage.contents)
    edges = (ctypes.c_double * 4)()
    pointers = [ctypes.addressof(edges) + 8 * i for i in (0, 2, 1, 3)]
    text: list[str] = []
    boxes: list[Sequence[float]] = []
    owners: list[int] = []
    shapeless = np.zeros(count, bool)
    numbers: dict[int, int] = {}
    for i in range(count):
        code = _unicode(address, i)
        character = chr(code) if 0 < code < 0x110000 else ''
        text.append(character)
        handle = None if character in '\r\n' else _text_object(address, i)
        if not handle:
            # What PDFium has added has no place on the page.
            boxes.append(_NOWHERE)
            owners.append(-1)
            continue
        owners.append(numbers.setdefault(handle, len(numbers)))
        if character == ' ' or not _char_box(address, i, *pointers):
            boxes.append(_NOWHERE)
            continue
        box = edges[:]
        width, height = box[2] - box[0], box[3] - box[1]
        if min(width, height) > _THINNEST * max(width, height):
            boxes.append(box)
        else:
            boxes.append(_loose_box(textpage, i))
            shapeless[i] = True
    _join_surrogates(text)
    objects = [ctypes.cast(handle, raw.FPDF_PAGEOBJECT) for handle in numbers]
    modes = [raw.FPDFTextObj_GetTextRenderMode(handle) for handle in objects]
    return Characters(text, np.asarray(boxes, np.float64).reshape(-1, 4), shapeless,
                      np.asarray(owners, np.int64), objects, np.asarray(modes, np.int64))


def _loose_box(textpage: Any, index: int) -> tuple[float, float, float, float]:
    """The place that a character without an outline takes up in its line."""
    box = raw.FS_RECTF()
    if not raw.FPDFText_GetLooseCharBox(textpage, index, box):
        return _NOWHERE
    return box.left, min(box.bottom, box.top), box.right, max(box.bottom, box.top)


def _join_surrogates(text: list[str]) -> None:
    """Characters beyond the basic plane may come as two UTF-16 surrogates."""
    for i, character in enumerate(text):
        if '\ud800' <= character <= '\udfff':
            pair = character + (text[i + 1] if i + 1 < len(text) else '')
            text[i] = pair.encode('utf-16', 'surrogatepass').decode('utf-16', 'ignore')[:1]
            if text[i] and i + 1 < len(text):
                text[i + 1] = ''


def page_objects(page: Any) -> Iterator[tuple[Any, int, Sequence[Any]]]:
    """Yields (handle, type, forms around it) of the objects that a page is made of.

    Args:
      page: raw handle.
    """
    for i in range(raw.FPDFPage_CountObjects(page)):
        yield from _object(raw.FPDFPage_GetObject(page, i), ())


def _object(handle: Any, forms: tuple[Any, ...]) -> Iterator[tuple[Any, int, Sequence[Any]]]:
    kind = raw.FPDFPageObj_GetType(handle)
    if kind != raw.FPDF_PAGEOBJ_FORM:
        yield handle, kind, forms
    elif len(forms) < _DEPTH:
        for i in range(raw.FPDFFormObj_CountObjects(handle)):
            yield from _object(raw.FPDFFormObj_GetObject(handle, i), (*forms, handle))
