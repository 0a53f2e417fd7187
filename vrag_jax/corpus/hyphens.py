"""Words hyphenated across lines: joined where the joined form is a word of the document.

`long-` + `term` stays `long-term`, `infor-` + `mation` becomes `information`: what stands
unbroken elsewhere in the document decides, then how its other words were broken.
"""

import collections
import re
from collections.abc import Sequence

SOFT_HYPHEN = '\xad'
_HYPHENS = '-\u2010\u2011'
# Letters and digits with hyphens inside; what stands before and after the end of a line.
_BROKEN = re.compile(f'([^\\W_]+(?:[{_HYPHENS}][^\\W_]+)*)([{_HYPHENS}{SOFT_HYPHEN}])'
                     f'[ \\t]*\\n[ \\t]*([^\\W_]+(?:[{_HYPHENS}][^\\W_]+)*)')
_COMPOUND = re.compile(f'[^\\W_]+(?:[{_HYPHENS}][^\\W_]+)*')
_SPLIT = re.compile(f'[{_HYPHENS}]')
_AT_END = re.compile(f'([^\\W_]{{2,}})([{_HYPHENS}{SOFT_HYPHEN}])$')
_AT_START = re.compile('[^\\W\\d_]{2,}')
_LINES_BETWEEN = 3  # Of a header or footer, between two halves of a word.
# Of these no more is known than that a hyphen commonly follows.
_PREFIXES = frozenset('all anti cross half high low long mid non quasi self semi short well'
                      .split())
_BEFORE_NAMES = _PREFIXES | set('indo inter neo pan post pre pro sub trans un'.split())


def join_lines(texts: Sequence[str]) -> list[str]:
    """Joins words that were broken at the ends of lines and pages.

    Args:
      texts: of all pages of a document, '' for those without. A broken word ends in a hyphen
        or a soft hyphen before the end of its line.

    Returns:
      The texts; a joined word stands whole where it began, and what follows it on the next
      line goes on in the same.
    """
    document = _Document(texts)
    joined = [_BROKEN.sub(document.join, text) for text in texts]
    return [document.complete(text, after).replace(SOFT_HYPHEN, '')
            for text, after in zip(joined, [*joined[1:], ''], strict=True)]


class _Document:
    """What a document says of its words.

    Args:
      texts: of its pages.
    """

    def __init__(self, texts: Sequence[str]):
        self._words: collections.Counter[str] = collections.Counter()
        self._pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        broken = []
        for text in texts:
            broken += [match.groups() for match in _BROKEN.finditer(text)]
            # Halves of broken words are not words.
            whole = _BROKEN.sub(' ', text).replace(SOFT_HYPHEN, '')
            for match in _COMPOUND.finditer(whole.lower()):
                parts = _SPLIT.split(match.group())
                self._words.update(parts)
                self._pairs.update(zip(parts, parts[1:], strict=False))
        decided = collections.Counter(self._known(*_halves(left, right))
                                      for left, hyphen, right in broken if hyphen != SOFT_HYPHEN)
        # Words were broken between syllables, as typesetters do; else at hyphens alone.
        self._typeset = decided[True] > 2 * decided[False]

    def _known(self, left: str, right: str) -> bool | None:
        """Whether two halves are one word elsewhere; None if nothing is known."""
        left, right = left.lower(), right.lower()
        one, two = self._words[left + right], self._pairs[left, right]
        return None if not one and not two else one > two

    def _is_one_word(self, left: str, right: str) -> bool:
        a, b = _halves(left, right)
        if a[-1].isdigit() or b[0].isdigit() or len(a) == 1:
            return False  # 2019-2020, Covid-19, X-ray.
        known = self._known(a, b)
        if known is not None:
            return known
        if b[0].isupper() and not a.isupper():
            return False  # Anglo-Saxon.
        if a != left or b != right:
            return False  # State-of-the-art.
        a, b = a.lower(), b.lower()
        if a[-1] == b[0] and a[-1] in 'aeiou' or a in _PREFIXES:
            return False  # Anti-inflammatory: no syllable ends where the next begins like it.
        if min(len(a), len(b)) > 2 and self._words[a] and self._words[b]:
            return False  # Data-driven.
        return self._typeset

    def join(self, match: re.Match[str]) -> str:
        """Returns what a broken word is in full."""
        left, hyphen, right = match.groups()
        if hyphen == SOFT_HYPHEN:
            return left + right
        if len(left) == 1 and not right[0].isdigit() and len(right) == 1:
            return match.group()  # Two marks in a table: A- above B.
        a, b = _halves(left, right)
        if a.islower() and b[0].isupper() and a not in _BEFORE_NAMES and self._known(a, b) is None:
            return match.group()  # A footer or heading stands between the halves.
        return left + right if self._is_one_word(left, right) else f'{left}{hyphen}{right}'

    def complete(self, text: str, after: str) -> str:
        """Completes a word that goes on on the next page, if that makes a word known elsewhere.

        Args:
          text: of a page.
          after: of the next, where the rest of the word stays.
        """
        lines = text.split('\n')
        starts = [match.group() for line in after.split('\n', _LINES_BETWEEN)[:_LINES_BETWEEN]
                  if (match := _AT_START.match(line))]
        for i in range(len(lines) - 1, max(len(lines) - 1 - _LINES_BETWEEN, -1), -1):
            end = _AT_END.search(lines[i])
            for start in starts if end else ():
                left = end.group(1)  # type: ignore[union-attr]
                if self._known(left, start):
                    lines[i] = lines[i][:end.start()] + left + start  # type: ignore[union-attr]
                    return '\n'.join(lines)
        return text


def _halves(left: str, right: str) -> tuple[str, str]:
    """Returns the parts of a broken compound that meet at the end of the line."""
    return _SPLIT.split(left)[-1], _SPLIT.split(right)[0]
