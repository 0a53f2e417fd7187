"""Whether the text layer of a PDF page says what the page shows.

Judged by what holds in any language, not by a list of words:

- characters that stand for nothing: private use, unassigned, controls, U+FFFD;
- UTF-8 that was read as Latin-1: bytes that are valid UTF-8 are hardly ever there by chance;
- letters of a script as no language mixes them: Latin with few of the letters A to Z, words
  of letters of several alphabets;
- glyphs that do not look like the letters that they are called: within a font, `b`, `d`, `h`,
  `k` and `l` rise above `a`, `c` and `e`, `g` and `p` go below the line, capitals are of one
  height, `m` is wider than `i`, and Han characters are squares. A font of one height, such
  as small capitals, is judged by widths, and one of a single box by nothing.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable

import numpy as np

from vrag_jax.corpus.ingestion.folders import NO_TEXT
from vrag_jax.corpus.pdf.glyphs import Glyphs

SHORT = 'has a text layer of a few characters'
MEANINGLESS = 'has a text layer of characters without a meaning'
MOJIBAKE = 'has a text layer that is UTF-8 read as Latin-1'
MIXED = 'has a text layer of letters that no language mixes'
INCOMPLETE = 'shows text that is not in its text layer'
SHAPES = 'has a text layer of other letters than those of its glyphs'

TO_COMPLETE = (SHORT, INCOMPLETE)  # What is there is right: OCR adds what it lacks.

FEWEST = 20  # Characters without blanks; a page number or a watermark is no text of a page.
_FEWEST_LETTERS = 24  # Of a font, for its shapes to be judged.
_FEWEST_KINDS = 8  # Different letters.
_MOST_MEANINGLESS = 0.2  # Of the characters; bullets and icons are of private use, too.
_LEAST_SPEAKING = 0.3  # Letters and digits; two thirds and more in formulas, tables and code.
_MOST_WRONG = 0.3  # Of the characters, in fonts whose shapes are wrong.
_LEAST_LIKENESS = 0.45  # Correlation of shapes; 0.9 and more in fonts that are right.

_CP1252 = {bytes([b]).decode('cp1252', 'replace'): b for b in range(0x80, 0xA0)}
# Lead byte and what may follow it, as Latin-1 and Windows-1252 show them.
_FOLLOWING = ''.join(map(chr, range(0x80, 0xC0))) + ''.join(c for c in _CP1252 if c != '\ufffd')
_UTF8 = re.compile(f'[\\xc3-\\xdf][{re.escape(_FOLLOWING)}]'
                   f'|[\\xe0-\\xef][{re.escape(_FOLLOWING)}]{{2}}'
                   f'|[\\xf0-\\xf4][{re.escape(_FOLLOWING)}]{{3}}')


@dataclasses.dataclass(frozen=True)
class _Script:
    """Lower-case letters by their shapes; those of neither kind are not looked at."""

    tall: str
    low: str
    below: str
    narrow: str = ''
    wide: str = ''


_SCRIPTS = (
    _Script('bdfhkl', 'aceomnrsuvwxzgpqy', 'gpqy', 'iljI', 'mwMW'),
    _Script('бф', 'авгежзиклмнопрстухцчшъыьэюя', 'руф'),
    _Script('βδθλζξ', 'αγεηικμνοπρσςτυχω', 'βγημρφχψ'),
)

# How wide capitals are in most fonts, of an em: a text of nothing else has no other shapes.
_CAPITAL_WIDTHS = dict(zip('ABCDEFGHIJKLMNOPQRSTUVWXYZ', (
    0.69, 0.67, 0.69, 0.72, 0.64, 0.58, 0.75, 0.72, 0.30, 0.45, 0.69, 0.58, 0.86, 0.72, 0.75, 0.61,
    0.75, 0.69, 0.61, 0.61, 0.72, 0.69, 0.94, 0.69, 0.69, 0.61), strict=True))


def judge(text: str, glyphs: Glyphs | None = None) -> tuple[str, np.ndarray]:
    """Judges the text layer of a page.

    Args:
      text: of the layer.
      glyphs: of the page; None if nothing is known of them.

    Returns:
      Why it is not believed as a whole, '' if it is; and which of the glyphs are not,
      bool [n].
    """
    wrong = np.zeros(0 if glyphs is None else len(glyphs.codes), bool)
    codes = [ord(c) for c in text if not c.isspace()]
    seen = codes
    if glyphs is not None and len(glyphs.codes):
        wrong = _wrong_shapes(glyphs)
        # Controls are not in the text any more. Dots may have any name.
        dots = (glyphs.ascents + glyphs.descents < 0.3).tolist()
        seen = [c for c, dot in zip(glyphs.codes.tolist(), dots, strict=True)
                if not _blank(c) and not (dot and _meaningless(c))]
    if _is_mojibake(text):
        return MOJIBAKE, wrong
    # Leaders of a table of contents are many of the same.
    seen = [c for i, c in enumerate(seen) if not i or c != seen[i - 1]
            or _meaningless(c) and glyphs is not None]
    meaningless = sum(map(_meaningless, seen))
    speaking = sum(unicodedata.category(chr(c))[0] in 'LNM' for c in seen)
    if len(seen) >= FEWEST and (meaningless > _MOST_MEANINGLESS * len(seen)
                                or speaking < _LEAST_SPEAKING * len(seen)):
        return MEANINGLESS, wrong
    if not codes:
        return NO_TEXT, wrong
    if _is_mixed(text):
        return MIXED, wrong
    if wrong.sum() >= _FEWEST_LETTERS and wrong.sum() > _MOST_WRONG * len(wrong):
        return SHAPES, wrong
    return SHORT if len(text) < FEWEST else '', wrong


def _blank(code: int) -> bool:
    return code == 0 or chr(code).isspace()


@functools.cache
def _meaningless(code: int) -> bool:
    if code in (0x02, 0xFFFE, 0xAD):  # A hyphen at a line end, by PDFium.
        return False
    return code == 0xFFFD or unicodedata.category(chr(code)) in ('Cc', 'Cn', 'Co')


def _is_mojibake(text: str) -> bool:
    """Whether most of what is beyond ASCII are bytes of UTF-8, and several."""
    found = [match.group() for match in _UTF8.finditer(text) if _decodes(match.group())]
    beyond = sum(ord(c) > 127 and not c.isspace() for c in text)
    # Of accents it takes more than one, of a text in another alphabet all of it.
    return len(found) >= 3 and 2 * sum(map(len, found)) > beyond


def _decodes(characters: str) -> bool:
    try:
        bytes(_CP1252.get(c, ord(c)) for c in characters).decode('utf-8')
    except ValueError:
        return False
    return True


def _is_mixed(text: str) -> bool:
    """Whether letters are mixed as in no language: within an alphabet, or of several."""
    letters = [c for c in text if c.isalpha()]
    latin = [c for c in letters if _alphabet(c) == 'LATIN']
    plain = sum(c.isascii() or unicodedata.decomposition(c)[:1] in tuple('0123456789ABCDEF')
                and 0x1E00 <= ord(c) <= 0x1EFF for c in latin)
    if len(latin) >= FEWEST and plain < 0.4 * len(latin) and len(latin) > 0.5 * len(letters):
        return True
    words = [word for word in re.findall(r'[^\W\d_]{3,}', text)]
    mixed = sum(len(word) for word in words if len({_alphabet(c) for c in word} - {''}) > 1)
    return mixed >= FEWEST and mixed > 0.3 * len(letters)


_ALPHABETS = ('LATIN', 'CYRILLIC', 'GREEK', 'HEBREW', 'ARABIC', 'THAI', 'DEVANAGARI', 'BENGALI',
              'TAMIL', 'TELUGU', 'GEORGIAN', 'ARMENIAN', 'ETHIOPIC', 'KHMER', 'CANADIAN',
              'CHEROKEE', 'HANGUL', 'CJK')
# Written without blanks between them, and Greek letters among Latin ones are formulas.
_TOGETHER = {'CJK': 'CJK', 'HANGUL': 'CJK'}


@functools.cache
def _alphabet(character: str) -> str:
    """Name of the alphabet of a letter; '' of those that stand among letters of any."""
    if character.isascii():
        return 'LATIN' if character.isalpha() else ''
    name = unicodedata.name(character, '').split(' ')[0]
    if name not in _ALPHABETS or unicodedata.decomposition(character).startswith('<'):
        return ''
    return '' if name in _TOGETHER else name


def _wrong_shapes(glyphs: Glyphs) -> np.ndarray:
    """Returns which glyphs are of fonts whose shapes are not those of their letters."""
    wrong = np.zeros(len(glyphs.codes), bool)
    known = ~np.isnan(glyphs.ascents)
    for font in np.unique(glyphs.fonts):
        members = glyphs.fonts == font
        chosen = members & known
        if chosen.sum() >= _FEWEST_LETTERS and _is_wrong(
                glyphs.codes[chosen], glyphs.ascents[chosen], glyphs.descents[chosen],
                glyphs.widths[chosen]):
            wrong |= members
    return wrong


def _is_wrong(codes: np.ndarray, ascents: np.ndarray, descents: np.ndarray, widths: np.ndarray
              ) -> bool:
    kinds, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
    up, down, width = (np.bincount(place, values) / counts
                       for values in (ascents, descents, widths))
    characters = [chr(code) for code in kinds.tolist()]
    weights = np.minimum(counts, 20).astype(float)

    def table(choose: Callable[[str], float | None]) -> tuple[np.ndarray, np.ndarray]:
        expected = np.array([np.nan if (e := choose(c)) is None else e for c in characters])
        return ~np.isnan(expected), expected

    square = (codes >= 0x4E00) & (codes <= 0x9FFF) | (codes >= 0xAC00) & (codes <= 0xD7A3)
    if square.sum() >= _FEWEST_LETTERS:
        # Against the em of the font, of which a Latin letter has half.
        return bool(np.median(np.maximum(widths, ascents + descents)[square]) < 0.62)
    # A character has one shape in a font; where many glyphs are called by it, several.
    plain = (codes < 0x7F) & np.array([c.isalnum() for c in characters])[place]
    differs = ((np.abs(ascents - up[place]) > 0.12) | (np.abs(widths - width[place]) > 0.2))[plain]
    if plain.sum() >= 2 * _FEWEST_LETTERS and differs.mean() > 0.5:
        return True
    found: list[float] = []
    for script in _SCRIPTS:
        letters = np.array([c in script.low + script.tall for c in characters])
        if counts[letters].sum() < _FEWEST_LETTERS or letters.sum() < _FEWEST_KINDS:
            continue
        for values, yes, no in ((up, script.tall, script.low),
                                (down, script.below, set(script.low) - set(script.below))):
            shapes = {**dict.fromkeys(no, 0.0), **dict.fromkeys(yes, 1.0)}
            chosen, expected = table(shapes.get)
            found += _likeness(values[chosen], expected[chosen], weights[chosen],
                               float(np.median(up[letters])))
    # Capitals, which are of one height in every alphabet that has them.
    capital = np.array([c.isupper() and not unicodedata.decomposition(c) and c != 'Q'
                        for c in characters])
    uneven = False
    if capital.sum() >= _FEWEST_KINDS and counts[capital].sum() >= _FEWEST_LETTERS:
        middle = max(float(np.median(up[capital])), 1e-6)
        uneven = float(np.mean(np.abs(up[capital] / middle - 1) > 0.12)) > 0.3
    if not found:
        chosen, expected = table(lambda c: 0 if c in _SCRIPTS[0].narrow else
                                 1 if c in _SCRIPTS[0].wide else
                                 0.5 if c.isascii() and c.isalpha() else None)
        if chosen.sum() >= 12 and counts[chosen].sum() >= _FEWEST_LETTERS:
            found += _likeness(width[chosen], expected[chosen], weights[chosen],
                               float(np.median(width[chosen])))
        if not found:
            found += _capitals_likeness(characters, width, counts)
    return uneven or bool(found) and float(np.mean(found)) < _LEAST_LIKENESS


def _capitals_likeness(characters: list[str], widths: np.ndarray, counts: np.ndarray
                       ) -> list[float]:
    """Returns how alike the widths of capitals are to those of most fonts, [] if that says nothing.

    Nothing of fonts of one width, and of few letters.
    """
    expected = np.array([_CAPITAL_WIDTHS.get(c, np.nan) for c in characters])
    chosen = ~np.isnan(expected)
    if chosen.sum() < 12 or counts[chosen].sum() < _FEWEST_LETTERS:
        return []
    values, expected = widths[chosen], expected[chosen]
    if np.std(values) < 0.12 * np.median(values):
        return []
    return [float(np.corrcoef(values, expected)[0, 1])]


def _likeness(values: np.ndarray, expected: np.ndarray, weights: np.ndarray, unit: float
              ) -> list[float]:
    """Returns the weighted correlation; [] where either is (nearly) the same throughout."""
    if len(values) < _FEWEST_KINDS or min((expected > 0.9).sum(), (expected < 0.1).sum()) < 2:
        return []
    weights = weights / weights.sum()
    x, y = values - weights @ values, expected - weights @ expected
    deviation = float(np.sqrt(weights @ x**2))
    if deviation < 0.06 * abs(unit):
        return []
    return [float(weights @ (x * y)) / (deviation * float(np.sqrt(weights @ y**2)))]
