"""Makes a policy's text, which may hold any character, safe to display."""

import unicodedata


def visible(text: str) -> str:
    """Writes control and other invisible characters as Python does: '\\x00', '\\u202e'.

    Some of them are not allowed in HTML, some would reverse or hide the text after
    them. Line breaks and tabs stay, and so do spaces of all kinds.
    """
    if text.isprintable():
        return text
    return ''.join(_escaped(char) for char in text)


def _escaped(char: str) -> str:
    category = unicodedata.category(char)
    shown = char in '\n\t' or not (category[0] == 'C' or category in ('Zl', 'Zp'))
    return char if shown else char.encode('unicode_escape').decode('ascii')
