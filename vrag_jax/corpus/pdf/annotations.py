"""Text of what lies on a PDF page: form fields as filled in, remarks, stamps."""

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pypdfium2 import raw

from vrag_jax.corpus.pdf.characters import Characters, read_characters
from vrag_jax.corpus.pdf.lines import SPACE, Glyph, Line, line_box

_WITHOUT_TEXT = frozenset((
    raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP, raw.FPDF_ANNOT_HIGHLIGHT,
    raw.FPDF_ANNOT_UNDERLINE, raw.FPDF_ANNOT_SQUIGGLY, raw.FPDF_ANNOT_STRIKEOUT))
_NOT_SHOWN = raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW
# Ticked and not.
_BUTTONS = {raw.FPDF_FORMFIELD_CHECKBOX: ('\u2611', '\u2610'),
            raw.FPDF_FORMFIELD_RADIOBUTTON: ('\u25c9', '\u25ef')}
_FILLED_IN = (raw.FPDF_FORMFIELD_TEXTFIELD, raw.FPDF_FORMFIELD_COMBOBOX)


@dataclasses.dataclass(frozen=True)
class Field:
    """A form field on the page.

    Attributes:
      box: (4,) float64: left, bottom, right and top in points.
      value: what is written in it; of a button its sign.
      is_button: whether it is a check box or a radio button, which has no text of its own.
    """

    box: np.ndarray
    value: str
    is_button: bool


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What lies on a page.

    Attributes:
      characters: of all texts but those of buttons.
      numbers: (characters,) int64: which of them they belong to, -1 for none.
      fields: form fields.
    """

    characters: Characters
    numbers: np.ndarray
    fields: list[Field]


@contextlib.contextmanager
def read_annotations(document: Any, page: Any, number: int) -> Iterator[Annotations | None]:
    """Yields what lies on a page, None if there is nothing with text.

    PDFium reads the text of pages alone: a copy of the page is made of what lies on it.

    Args:
      document: pypdfium2's document, its forms initialised.
      page: its page, rendered once: PDFium draws fields that have no appearance then.
      number: of the page, from 0.
    """
    shown, hidden, buttons, fields = _look(document, page)
    if not len(shown):
        yield None
        return
    copy = raw.FPDF_CreateNewDocument()
    try:
        indices = (ctypes.c_int * 1)(number)
        if not raw.FPDF_ImportPagesByIndex(copy, document.raw, indices, 1, 0):
            yield None
            return
        _flatten(copy, sorted({*hidden, *buttons}, reverse=True))
        flat = raw.FPDF_LoadPage(copy, 0)
        text = raw.FPDFText_LoadPage(flat)
        try:
            characters = read_characters(text)
            yield Annotations(characters, _numbers(characters, shown), fields)
        finally:
            raw.FPDFText_ClosePage(text)
            raw.FPDF_ClosePage(flat)
    finally:
        raw.FPDF_CloseDocument(copy)


def _look(document: Any, page: Any) -> tuple[np.ndarray, list[int], list[int], list[Field]]:
    """Returns the boxes of annotations that may have text, which are hidden, buttons, fields."""
    shown: list[np.ndarray] = []
    hidden, buttons, fields = [], [], []
    form = document.formenv.raw if document.formenv else None
    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        if not annotation:
            continue
        try:
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            rect = raw.FS_RECTF()
            if (raw.FPDFAnnot_GetFlags(annotation) & _NOT_SHOWN or kind in _WITHOUT_TEXT
                    or not raw.FPDFAnnot_GetRect(annotation, rect)):
                hidden.append(index)
                continue
            box = np.array([min(rect.left, rect.right), min(rect.bottom, rect.top),
                            max(rect.left, rect.right), max(rect.bottom, rect.top)], np.float64)
            shown.append(box)
            field = _field(form, annotation, box) if kind == raw.FPDF_ANNOT_WIDGET else None
            if field is not None:
                fields.append(field)
                if field.is_button:
                    buttons.append(index)
        finally:
            raw.FPDFPage_CloseAnnot(annotation)
    return np.array(shown).reshape(-1, 4), hidden, buttons, fields


def _field(form: Any, annotation: Any, box: np.ndarray) -> Field | None:
    kind = raw.FPDFAnnot_GetFormFieldType(form, annotation) if form else None
    if kind in _BUTTONS:
        ticked = raw.FPDFAnnot_IsChecked(form, annotation)
        return Field(box, _BUTTONS[kind][0 if ticked else 1], True)
    if kind not in _FILLED_IN:
        return None
    length = raw.FPDFAnnot_GetFormFieldValue(form, annotation, None, 0)
    buffer = (ctypes.c_ushort * (length // 2 + 1))()
    raw.FPDFAnnot_GetFormFieldValue(form, annotation, buffer, length)
    value = bytes(buffer)[:max(length - 2, 0)].decode('utf-16-le', 'ignore')
    return Field(box, value, False)


def _numbers(characters: Characters, boxes: np.ndarray) -> np.ndarray:
    """Returns for each character in which box it lies: of several in the smallest."""
    x, y = (characters.boxes[:, :2] + characters.boxes[:, 2:]).T[..., None] / 2
    inside = ((x >= boxes[:, 0]) & (x <= boxes[:, 2]) & (y >= boxes[:, 1]) & (y <= boxes[:, 3]))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    numbers = np.argmin(np.where(inside, areas, np.inf), 1)
    return np.where(inside.any(1), numbers, -1)


def _flatten(copy: Any, unwanted: Sequence[int]) -> None:
    """Makes the only page of a document one of its annotations alone.

    Args:
      copy: raw handle of the document.
      unwanted: indices of annotations that are left out, the last first.
    """
    page = raw.FPDF_LoadPage(copy, 0)
    try:
        for index in unwanted:
            raw.FPDFPage_RemoveAnnot(page, index)
        for i in reversed(range(raw.FPDFPage_CountObjects(page))):
            handle = raw.FPDFPage_GetObject(page, i)
            if raw.FPDFPage_RemoveObject(page, handle):
                raw.FPDFPageObj_Destroy(handle)
        raw.FPDFPage_GenerateContent(page)
        raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)
    finally:
        raw.FPDF_ClosePage(page)


def field_lines(lines: list[Line], fields: Sequence[tuple[str, Sequence[float]]]) -> list[Line]:
    """Sets spaces as the values of form fields have them: those of a comb have a box a letter.

    Args:
      lines: of the annotations' characters.
      fields: value and box in pixels of each form field with text.
    """
    result = []
    for line in lines:
        letters = [glyph for glyph in line if not glyph.text.isspace()]
        bounds = line_box(letters)
        value = next((value for value, box in fields if bounds and _is_in(bounds, box)), '')
        wanted = ''.join(value.split())
        if wanted and wanted == ''.join(glyph.text for glyph in letters) and all(
                len(glyph.text) == 1 for glyph in letters):
            left = iter(letters)
            line = [SPACE if c.isspace() else next(left) for c in value.strip()]
        result.append(line)
    return result


def _is_in(inner: Sequence[float], outer: Sequence[float]) -> bool:
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    return outer[0] <= x <= outer[2] and outer[1] <= y <= outer[3]


def place_lines(lines: list[Line], added: Sequence[Line]) -> list[Line]:
    """Puts lines of annotations where they stand among those of the page.

    Args:
      lines: of the page, in reading order.
      added: of annotations.
    """
    lines = [list(line) for line in lines]
    for extra in sorted((line for line in added if line_box(line)), key=_upper_left):
        _place(lines, extra)
    return lines


def _upper_left(line: Line) -> tuple[float, float]:
    box = line_box(line)
    assert box is not None
    return box[1], box[0]


def _place(lines: list[Line], extra: Line) -> None:
    box = line_box(extra)
    assert box is not None
    beside: tuple[float, int, int] | None = None  # Distance, line, place in it.
    above: tuple[float, int] | None = None  # Distance, line.
    below: tuple[float, int] | None = None
    for number, line in enumerate(lines):
        bounds = line_box(line)
        if bounds is None:
            continue
        height = min(box[3], bounds[3]) - max(box[1], bounds[1])
        if height > 0.4 * min(box[3] - box[1], bounds[3] - bounds[1]):
            left = [i for i, glyph in enumerate(line)
                    if glyph.box and glyph.box[0] + glyph.box[2] < box[0] + box[2]]
            over = any(glyph.box and glyph.box[0] < box[2] and glyph.box[2] > box[0]
                       for glyph in line)
            place = left[-1] + 1 if left else 0
            distance = (box[0] - line[left[-1]].box[2] if left  # type: ignore[index]
                        else bounds[0] - box[2] + 1e6)  # What is left of it goes first.
            if not over and (beside is None or distance < beside[0]):
                beside = distance, number, place
        in_column = min(box[2], bounds[2]) > max(box[0], bounds[0])
        if bounds[1] + bounds[3] <= box[1] + box[3]:
            distance = box[1] - bounds[3] + (0 if in_column else 1e6)
            if above is None or distance <= above[0]:
                above = distance, number
        else:
            distance = bounds[1] - box[3] + (0 if in_column else 1e6)
            if below is None or distance < below[0]:
                below = distance, number
    if beside is not None:
        _, number, place = beside
        line = lines[number]
        before = [SPACE] if place and not line[place - 1].text.isspace() else []
        after = [SPACE] if place < len(line) and not line[place].text.isspace() else []
        line[place:place] = [*before, *extra, *after]
    elif above is not None and (above[0] < 1e6 or below is None or below[0] >= 1e6):
        lines.insert(above[1] + 1, list(extra))
    elif below is not None:
        lines.insert(below[1], list(extra))
    else:
        lines.append(list(extra))


def button_glyph(field: Field, box: Sequence[float]) -> Line:
    """Returns the sign of a check box or a radio button as a line of its own."""
    x1, y1, x2, y2 = box
    return [Glyph(field.value, (x1, y1, x2, y2))]
