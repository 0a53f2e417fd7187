"""Lines of text of a PDF page: as a person reads them, not as their letters were placed."""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vrag_jax.corpus.pdf.characters import HYPHENS, Characters
from vrag_jax.corpus.words import Word

SOFT_HYPHEN = '\xad'
# Forms of letters that a font has and a word has not: ligatures, Arabic letters by their place
# in the word, and radicals that stand for characters.
_FORMS = re.compile('[\u2e80-\u2fdf\uf900-\ufaff\ufb00-\ufdff\ufe70-\ufefc]')
_IDEOGRAPHS = re.compile('[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff'
                         '\U00020000-\U0003134f]')

_TOKEN = re.compile('\\S+')
_SPACED = re.compile('(?<!\\S)\\S\\s+\\S(?!\\S)')


Box = tuple[float, float, float, float]
_NOWHERE = (math.inf, math.inf, -math.inf, -math.inf)


class Glyph(NamedTuple):
    """A character of a line.

    Attributes:
      text: the character, or those that a ligature stands for.
      box: x1, y1, x2, y2 in pixels of the page's image; None for a space.
    """

    text: str
    box: Box | None = None


Line = list[Glyph]
SPACE = Glyph(' ')


def read_lines(characters: Characters, boxes: np.ndarray, seen: np.ndarray,
               parts: np.ndarray | None = None) -> list[Line]:
    """Returns the lines of the characters that are seen.

    A word that goes on in the next line ends in a hyphen.

    Args:
      characters: of the page.
      boxes: (characters, 4) float, theirs in pixels: x1, y1, x2, y2.
      seen: (characters,) bool.
      parts: (characters,) int: of which part of the page they are, which has lines of its own;
        -1 for what is of none.
    """
    lines: list[Line] = [[]]
    dropped = False
    part = -1
    for i, (text, box, is_seen) in enumerate(zip(
            characters.text, boxes.tolist(), seen.tolist(), strict=True)):
        if parts is not None and parts[i] not in (part, -1):
            part = parts[i]
            lines.append([])
        if not is_seen:
            dropped = True
        elif '!' <= text <= '~':  # Most are.
            lines[-1].append(Glyph(text, None if box[0] != box[0] else tuple(box)))
        elif text == '\n':
            if dropped and not any(glyph.box for glyph in lines[-1]):
                lines[-1] = []
            else:
                lines.append([])
            dropped = False
        elif text in HYPHENS:
            lines[-1].append(Glyph('-', None if box[0] != box[0] else tuple(box)))
            lines.append([])
        elif text.isspace():
            if text != '\r' and not (dropped and lines[-1] and lines[-1][-1].box is None):
                lines[-1].append(Glyph(text if text == '\t' else ' '))
        else:
            text = normalize_forms(text)
            if text:
                lines[-1].append(Glyph(text, None if box[0] != box[0] else tuple(box)))
    for line in lines:
        while line and line[-1].text.isspace():
            line.pop()
        # A soft hyphen is a hyphen at the end of a line, and nothing in it.
        if any(glyph.text == SOFT_HYPHEN for glyph in line[:-1]):
            line[:-1] = [glyph for glyph in line[:-1] if glyph.text != SOFT_HYPHEN]
    return [_join_spaced(line) for line in _order_columns(_join_vertical(lines))]


def normalize_forms(text: str) -> str:
    """Returns the letters that presentation forms stand for; drops control characters."""
    if len(text) == 1 and (unicodedata.category(text) == 'Cc' or text == '\ufeff'):
        return ''
    return unicodedata.normalize('NFKC', text).strip() if _FORMS.match(text) else text


def lines_text(lines: Sequence[Line]) -> str:
    """Returns the text of lines."""
    return '\n'.join(''.join(glyph.text for glyph in line).rstrip() for line in lines).strip()


def lines_words(lines: Sequence[Line], size: tuple[int, int]) -> list[Word]:
    """Returns the runs of characters between white space; a hyphenated word is two.

    Args:
      lines: of the page.
      size: width and height of its image, where boxes end.
    """
    words = []
    for line in lines:
        text, bounds = '', _NOWHERE
        for glyph in [*line, SPACE]:
            box = glyph.box
            if glyph.text.isspace() or box and box[2] < bounds[0] < math.inf and (
                    box[1] > bounds[3] or box[3] < bounds[1]):  # Left of it, above or below.
                words += _word(text, bounds, size)
                text, bounds = '', _NOWHERE
            if not glyph.text.isspace():
                text += glyph.text
                if box:
                    bounds = (min(bounds[0], box[0]), min(bounds[1], box[1]),
                              max(bounds[2], box[2]), max(bounds[3], box[3]))
    return words


def _word(text: str, bounds: Box, size: tuple[int, int]) -> list[Word]:
    """Returns the word, [] if none of it is on the image."""
    if not text or bounds == _NOWHERE:
        return []
    box = (max(math.floor(bounds[0]), 0), max(math.floor(bounds[1]), 0),
           min(math.ceil(bounds[2]), size[0]), min(math.ceil(bounds[3]), size[1]))
    if box[0] >= box[2] or box[1] >= box[3]:
        return []
    return [Word(text.replace(SOFT_HYPHEN, '-'), box)]


def line_box(line: Sequence[Glyph]) -> Box | None:
    """Returns x1, y1, x2, y2 around all characters of a line, None if it has none."""
    boxes = [glyph.box for glyph in line if glyph.box]
    if not boxes:
        return None
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _join_vertical(lines: Sequence[Line]) -> list[Line]:
    """Joins characters that stand below each other, each of which counts as a line."""
    result: list[Line] = []
    for line in lines:
        last = result[-1] if result else []
        if (len(line) == 1 and last and _is_ideograph(line[0]) and all(map(_is_ideograph, last))
                and _is_below(last, line[0])):
            last.extend(line)
        else:
            result.append(list(line))
    return result


def _order_columns(lines: list[Line]) -> list[Line]:
    """Puts columns that stand side by side in the order of vertical writing, from the right."""
    result: list[Line] = []
    columns: list[tuple[Box, Line]] = []
    for line in [*lines, []]:
        box = line_box(line)
        is_column = (box is not None and len(line) > 1 and box[3] - box[1] > 1.5 * (box[2] - box[0])
                     and all(map(_is_ideograph, line)))
        if columns and not (is_column and box is not None and box[1] < columns[-1][0][3]
                            and box[3] > columns[-1][0][1]):
            result += [column for _, column in sorted(columns, key=lambda item: -item[0][0])]
            columns = []
        if is_column and box is not None:
            columns.append((box, line))
        else:
            result.append(line)
    return result[:-1]


def _is_ideograph(glyph: Glyph) -> bool:
    return bool(_IDEOGRAPHS.match(glyph.text))


def _is_below(column: Sequence[Glyph], glyph: Glyph) -> bool:
    above, box = column[-1].box, glyph.box
    # A column begins with one character; a line of several is followed by another line.
    if above is None or box is None or len(column) > 1 and column[-2].box is not None and (
            column[-2].box[3] > above[1] + 0.5 * (above[3] - above[1])):
        return False
    em = max(above[3] - above[1], above[2] - above[0], box[3] - box[1], box[2] - box[0])
    centred = abs((above[0] + above[2]) - (box[0] + box[2])) / 2 < 0.3 * em
    return centred and -0.2 * em < box[1] - above[3] < em


def _join_spaced(line: Line) -> Line:
    """Joins letters that are set wide apart, so that each counts as a word: K E Y N O T E."""
    drop: set[int] = set()
    text = ''.join(glyph.text[:1] for glyph in line)
    if not _SPACED.search(text):
        return line
    tokens = [range(*match.span()) for match in _TOKEN.finditer(text)]
    start = 0
    while start < len(tokens):
        end = start
        while end < len(tokens) and len(tokens[end]) == 1:
            end += 1
        drop |= _spaces_inside(line, [token[0] for token in tokens[start:end]])
        start = end + 1
    return [glyph for i, glyph in enumerate(line) if i not in drop] if drop else line


def _spaces_inside(line: Line, letters: Sequence[int]) -> set[int]:
    """Returns the indices of spaces that stand inside of words whose letters are set apart.

    Args:
      line: of text.
      letters: indices of characters with spaces between all of them.
    """
    boxes = [line[i].box for i in letters]
    if len(letters) < 2 or any(box is None for box in boxes):
        return set()
    text = ''.join(line[i].text for i in letters)
    edges = np.array(boxes)
    heights = edges[:, 3] - edges[:, 1]
    gaps = edges[1:, 0] - edges[:-1, 2]
    middle = float(np.median(gaps))
    if all(map(_IDEOGRAPHS.match, text)):
        em = float(max(heights.max(), (edges[:, 2] - edges[:, 0]).max()))
        widest = 2.5 if len(letters) > 2 else 1.3
    else:
        in_order = all(ord(b) - ord(a) == 1 for a, b in zip(text, text[1:], strict=False))
        letters_only = sum(map(str.isalpha, text))
        if len(text) < 4 or letters_only < 4 or not text.isalnum() or in_order:
            return set()
        em, widest = float(heights.max()) / 0.7, 1.6
    if not 0 < middle <= widest * em:
        return set()
    inside = gaps <= 1.5 * middle + 0.1 * em
    if np.ptp(gaps[inside]) > 0.3 * em + 0.25 * middle:
        # Placed at an even pitch, by left edges or middles, gaps are as the widths leave them.
        pitches = [np.diff(x) for x in (edges[:, 0], (edges[:, 0] + edges[:, 2]) / 2)]
        spreads = [float(np.ptp(steps[steps <= 1.5 * np.median(steps)])) for steps in pitches]
        if min(spreads) > 0.2 * em:
            return set()
        steps = pitches[int(np.argmin(spreads))]
        inside = steps <= 1.5 * np.median(steps)
    runs = np.split(np.arange(len(letters)), np.nonzero(~inside)[0] + 1)
    if max(map(len, runs)) < min(len(letters), 3):
        return set()
    return {space for a, b, is_inside in zip(letters, letters[1:], inside, strict=False)
            if is_inside for space in range(a + 1, b)}
