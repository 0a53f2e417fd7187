"""Fonts that a PDF names, does not hold, and this machine has not."""

import ctypes
import unicodedata

import numpy as np
from pypdfium2 import raw

from vrag_jax.ingestion.pdf_characters import Characters

_SPECK = 0.5  # Points: smaller characters have no outline, whatever their font.
_UNPAINTED = (3, 7)
# Of Debian and Ubuntu, by the first word of the names of a script's characters.
_PACKAGES = {'CJK': 'fonts-noto-cjk', 'HIRAGANA': 'fonts-noto-cjk', 'KATAKANA': 'fonts-noto-cjk',
             'HANGUL': 'fonts-noto-cjk', 'BOPOMOFO': 'fonts-noto-cjk',
             'IDEOGRAPHIC': 'fonts-noto-cjk', 'FULLWIDTH': 'fonts-noto-cjk'}
_OTHER_PACKAGE = 'fonts-noto-core'


def missing_fonts(characters: Characters) -> tuple[np.ndarray, str]:
    """Finds characters that cannot be painted for want of a font.

    Args:
      characters: of a page.

    Returns:
      (characters,) bool: which they are, and a sentence that names fonts and packages, '' if
      there are none.
    """
    lacking = np.zeros(len(characters.text), bool)
    names: set[str] = set()
    packages: set[str] = set()
    embedded: dict[int, bool] = {}
    wide = characters.boxes[:, 2] - characters.boxes[:, 0] > _SPECK
    [candidates] = np.nonzero(characters.shapeless & wide & ~characters.blank)
    for i in candidates:
        owner = int(characters.owners[i])
        if owner < 0 or characters.modes[owner] in _UNPAINTED:
            continue
        font = raw.FPDFTextObj_GetFont(characters.objects[owner])
        if owner not in embedded:
            embedded[owner] = not font or raw.FPDFFont_GetIsEmbedded(font) != 0
        text = characters.text[i]
        if embedded[owner] or unicodedata.category(text)[0] not in 'LNPS':
            continue
        lacking[i] = True
        names.add(_name(font))
        script = unicodedata.name(text, '').split(' ')[0].split('-')[0]
        packages.add(_PACKAGES.get(script, _OTHER_PACKAGE))
    if not names:
        return lacking, ''
    return lacking, (
        f'{int(lacking.sum())} characters are missing in its image: neither the file nor this '
        f'machine has the font {", ".join(sorted(names))}; install e.g. the package '
        f'{" and ".join(sorted(packages))}')


def _name(font: object) -> str:
    length = raw.FPDFFont_GetBaseFontName(font, None, 0)
    buffer = ctypes.create_string_buffer(max(length, 1))
    raw.FPDFFont_GetBaseFontName(font, buffer, length)
    return buffer.value.decode('utf-8', 'replace') or 'without a name'
