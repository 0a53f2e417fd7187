"""Page numbers in file names: `deck_3.jpg` is page 3 of `deck`."""

import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBERED = re.compile(r'(|.*\D)(\d+)\)?')
# Before the number, behind the document: deck_page_3, deck-p3, deck (3).
_PAGE_WORD = re.compile(r'(.+?)[ _.-]+(?:p|pg|page|slide|seite)[ _.-]*', re.IGNORECASE)
# The image's width after the page's number, as SlideShare has it: slide_10_1024.jpg.
_WITH_WIDTH = re.compile(r'(.+)[ _-](\d+)[ _-](\d{3,4})')
_SMALLEST_WIDTH = 300
_YEARS = range(1900, 2101)
# These say that it is a page, not of what.
_GENERIC = frozenset(('', 'p', 'page', 'slide', 'image', 'img', 'scan', 'pic', 'picture', 'seite'))


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts numbers in names by value: 'page 2' before 'page 10'."""
    # The end comes before anything that goes on; '01' and '1' differ in it.
    parts = [part for part in re.split(r'([0-9]+)', name) if part]
    return (*((0, int(p)) if p.isdecimal() and p.isascii() else (1, p) for p in parts), (-1, name))


def numbered_names(stems: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Reads document and page number out of the names of files of one folder.

    Args:
      stems: names without their endings.

    Returns:
      `(document, page)` of each stem that has a number, which is 1 or more, at its end, or
      before a width that several share. The document is '' where the rest says no more than
      'page' does. Years are no page numbers, nor is a number that follows a letter.
    """
    all_stems = list(stems)
    widths: dict[tuple[str, str], set[str]] = defaultdict(set)
    for stem in all_stems:
        match = _WITH_WIDTH.fullmatch(stem)
        if match and int(match[3]) >= _SMALLEST_WIDTH:
            widths[match[1], match[3]].add(match[2])
    found: dict[str, tuple[str, int]] = {}
    for stem in all_stems:
        match = _WITH_WIDTH.fullmatch(stem)
        if match and len(widths[match[1], match[3]]) > 1:
            found[stem] = (match[1], int(match[2]))
        elif match := _NUMBERED.fullmatch(stem):
            name = match[1].rstrip(' _-.(')
            if name.lower() in _GENERIC:
                name = ''
            elif word := _PAGE_WORD.fullmatch(match[1]):
                name = word[1]
            elif name == match[1]:
                continue
            found[stem] = (name, int(match[2]))
    numbers: dict[str, set[int]] = defaultdict(set)
    for name, number in found.values():
        numbers[name].add(number)
    # Where there is a page 0 the numbers do not count as readers do.
    return {stem: (name, number) for stem, (name, number) in found.items()
            if 0 not in numbers[name] and not all(n in _YEARS for n in numbers[name])}
