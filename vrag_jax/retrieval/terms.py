"""Splits English and Chinese text into the terms that lexical search compares."""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

# Scripts written without spaces between words: kana, Han, Hangul.
_CJK = '\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f'
_RUNS = re.compile(f'([{_CJK}]+)|[^\\W_{_CJK}]+')

# English words of grammar. A corpus of a few pages, or one that is mostly in
# another language, makes them rare, and so heavy, by its own document counts.
STOP_WORDS = frozenset("""
    a about after all also am among an and any are as at be been before being between both but by
    can could did do does during each for from had has have he her here him his how i if in into is
    it its many me more most much my no nor not of on or other our shall she should so some such
    than that the their them then there these they this those through to under us was we were what
    when where which while who whom whose why will with would you your
""".split())


@dataclasses.dataclass(frozen=True)
class Terms:
    """Terms of a text, with repetitions.

    Attributes:
      words: words without stop words; pairs of characters of CJK runs.
      phrases: pairs of neighbouring words; triples of characters of CJK runs.
      spelled: the words that are written in letters, whose pieces are terms, too.
    """

    words: Sequence[str]
    phrases: Sequence[str]
    spelled: Sequence[str]

    @property
    def pieces(self) -> list[str]:
        """The pieces of all words that have some."""
        return [piece for word in self.spelled for piece in word_pieces(word)]


def split_terms(text: str) -> Terms:
    """Splits a text, normalised by NFKC and lower-cased, into terms."""
    words: list[str] = []
    phrases: list[str] = []
    spelled: list[str] = []
    previous = None
    for match in _RUNS.finditer(unicodedata.normalize('NFKC', text).lower()):
        run = match.group()
        if match.group(1):
            words.extend(_ngrams(run, 2) or [run])
            phrases.extend(_ngrams(run, 3))
            previous = None
        elif run in STOP_WORDS:
            previous = None
        else:
            words.append(run)
            spelled.append(run)
            if previous is not None:
                phrases.append(f'{previous} {run}')
            previous = run
    return Terms(words, phrases, spelled)


def word_pieces(word: str) -> tuple[str, ...]:
    """Returns the n-grams of characters inside a word with its borders marked.

    They match other forms of a word and misread ones.
    """
    marked = f'<{word}>'
    return tuple(gram for n in (3, 4, 5) for gram in _ngrams(marked, n))


def _ngrams(text: str, n: int) -> list[str]:
    return [text[i:i + n] for i in range(len(text) - n + 1)]
