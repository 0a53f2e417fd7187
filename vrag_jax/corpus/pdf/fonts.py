"""Fonts that a PDF names, does not hold, and this machine has not."""

import ctypes
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pypdfium2 import raw

from vrag_jax.corpus.pdf.characters import UNPAINTED, Characters

_SPECK = 0.5  # Points: smaller characters have no outline, whatever their font.
_CJK_PACKAGE, _OTHER_PACKAGE = 'fonts-noto-cjk', 'fonts-noto-core'  # Of Debian and Ubuntu.
# First words of the names of characters.
_CJK_CHARACTERS = frozenset('BOPOMOFO CJK FULLWIDTH HANGUL HIRAGANA IDEOGRAPHIC KATAKANA'.split())
_CJK_FONTS = re.compile(
    'heisei|kozmin|kozgo|ryumin|gothicbbb|mincho|ms-?p?gothic|meiryo|yugothic|stsong|sthei|stkai|'
    'stfang|simsun|simhei|nsimsun|yahei|fangsong|kaiti|songti|heiti|msung|mhei|mingliu|dfkai|'
    'mkai|hysmyeongjo|hygothic|batang|dotum|gulim|malgun|myungjo|adobe(song|ming|heiti|kaiti|'
    'myungjo)|source-?han|noto.*cjk', re.IGNORECASE)
_BUILT_IN = 'Chrom'  # The fonts that PDFium has of its own, for Latin letters, begin so.


def missing_fonts(characters: Characters, objects: Sequence[Any]) -> tuple[np.ndarray, str]:
    """Finds characters that cannot be painted for want of a font.

    Args:
      characters: of a page.
      objects: all text objects of the page, as PDFium's handles. PDFium reads no characters of
        one that takes up no place, as one in a missing font may.

    Returns:
      (characters,) bool: which of the characters they are, and a sentence that names fonts and
      packages, '' if there are none.
    """
    lacking = np.zeros(len(characters.text), bool)
    names: set[str] = set()
    packages: set[str] = set()
    wide = characters.boxes[:, 2] - characters.boxes[:, 0] > _SPECK
    [candidates] = np.nonzero(characters.shapeless & wide & ~characters.blank)
    for i in candidates:
        owner = int(characters.owners[i])
        if owner < 0 or characters.modes[owner] in UNPAINTED:
            continue
        text, font = characters.text[i], _substituted(characters.objects[owner])
        if font is None or unicodedata.category(text)[0] not in 'LNPS':
            continue
        lacking[i] = True
        names.add(font)
        script = unicodedata.name(text, '').split(' ')[0].split('-')[0]
        packages.add(_CJK_PACKAGE if script in _CJK_CHARACTERS else _OTHER_PACKAGE)
    read = {ctypes.addressof(handle.contents) for handle in characters.objects}
    for handle in objects:
        if (ctypes.addressof(handle.contents) not in read
                and raw.FPDFTextObj_GetTextRenderMode(handle) not in UNPAINTED):
            font = _substituted(handle)
            if font is not None and _CJK_FONTS.search(font) and _family(handle).startswith(
                    _BUILT_IN):
                names.add(font)
                packages.add(_CJK_PACKAGE)
    if not names:
        return lacking, ''
    fonts = f'font{"s" * (len(names) > 1)} {", ".join(sorted(names))}'
    return lacking, (f'characters are missing in its image: neither the file nor this machine has '
                     f'the {fonts}; install the package {" and ".join(sorted(packages))}')


def _substituted(handle: Any) -> str | None:
    """Returns the name of a text object's font, None if the file holds it."""
    font = raw.FPDFTextObj_GetFont(handle)
    if not font or raw.FPDFFont_GetIsEmbedded(font) != 0:
        return None
    return _text(raw.FPDFFont_GetBaseFontName, font) or 'without a name'


def _family(handle: Any) -> str:
    """Returns the name of the font that PDFium takes for that of a text object."""
    return _text(raw.FPDFFont_GetFamilyName, raw.FPDFTextObj_GetFont(handle))


def _text(function: Callable[..., int], font: Any) -> str:
    length = function(font, None, 0)
    buffer = ctypes.create_string_buffer(max(length, 1))
    function(font, buffer, length)
    return buffer.value.decode('utf-8', 'replace')
