"""Unicode normalisation of names: macOS decomposes accented letters, others do not."""

import unicodedata
from pathlib import Path


def nfc(text: str) -> str:
    """Returns a name in the form NFC, in which all names are compared."""
    return text if text.isascii() else unicodedata.normalize('NFC', text)


def existing(path: Path) -> Path:
    """Returns a path as the file system spells it; as it is, if nothing there has its name.

    Where a name was typed in one form and stored in the other, both mean the same file.
    """
    path = Path(path)
    if path.exists() or str(path).isascii():
        return path
    if path.parent == path:
        return path
    parent = existing(path.parent)
    try:
        same = sorted(name for name in parent.iterdir() if nfc(name.name) == nfc(path.name))
    except OSError:
        return path
    return same[0] if same else path
