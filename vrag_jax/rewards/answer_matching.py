"""Comparing an answer with its references: normalisation, exact match, ANLS, F1."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from rapidfuzz.distance import Levenshtein

THOUSANDS = re.compile(r'(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])')
_PERCENT = re.compile(r'%|\bper\s?cent\b')
# An article stands before a word: the A of 'panel A' is none.
_ARTICLE = re.compile(r'\b(?:a|an|the)\s+(?=\w)')
IDEOGRAPH = '[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]'
_WORD = re.compile(rf'{IDEOGRAPH}|(?:(?!{IDEOGRAPH})\S)+')
_SPACE_AT_IDEOGRAPH = re.compile(rf'(?<={IDEOGRAPH})\s+|\s+(?={IDEOGRAPH})')


def normalise(text: str) -> str:
    """Brings a text into the form in which answers are compared.

    Applied in order: Unicode NFKC and case folding, thousands separators out of
    numbers, percent signs and words away, apostrophes and full stops away, other punctuation
    to spaces (not a decimal point or a sign of a number), English articles away,
    white space to single blanks and, beside Chinese or Japanese characters, away.

    Args:
      text: any string.

    Returns:
      The normal form; if nothing would be left of a text, its case-folded self.
    """
    folded = unicodedata.normalize('NFKC', text).casefold().replace('\u2212', '-').strip()
    numbers = THOUSANDS.sub(lambda match: match[0].replace(',', ''), folded)
    words = _without_punctuation(_PERCENT.sub(' ', numbers))
    words = _ARTICLE.sub('', ' '.join(words.split()))
    return _SPACE_AT_IDEOGRAPH.sub('', words) or folded


def _without_punctuation(text: str) -> str:
    kept = []
    for i, char in enumerate(text):
        before, after = text[i - 1:i], text[i + 1:i + 2]
        decimal_point = char == '.' and after.isdigit()
        if char in '\'\u2019.' and not decimal_point:
            continue
        sign = char == '-' and (after.isdigit() or after == '.') and not before.isalnum()
        is_mark = unicodedata.category(char).startswith('P')
        kept.append(' ' if is_mark and not (decimal_point or sign) else char)
    return ''.join(kept)


def exact_match(answer: str, references: Iterable[str]) -> float:
    """Returns 1.0 if the answer equals a reference after `normalise`, else 0.0."""
    found = normalise(answer)
    return float(any(found == normalise(reference) for reference in references))


def anls(answer: str, references: Iterable[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer (Biten et al., 2019).

    Args:
      answer: what was said.
      references: accepted answers; the nearest counts.
      threshold: normalised distance from which on the similarity is 0.

    Returns:
      1 - distance / length of the longer text, in [0, 1], on normalised texts.
    """
    found = normalise(answer)
    return max((_similarity(found, normalise(reference), threshold) for reference in references),
               default=0.0)


def _similarity(a: str, b: str, threshold: float) -> float:
    distance = Levenshtein.normalized_distance(a, b)
    return 1.0 - distance if distance < threshold else 0.0


def token_f1(answer: str, references: Iterable[str]) -> float:
    """F1 of the words that an answer shares with a reference (Rajpurkar et al., 2016).

    Args:
      answer: what was said.
      references: accepted answers; the best one counts.

    Returns:
      The harmonic mean of precision and recall, in [0, 1], on normalised texts; Chinese and
      Japanese characters count as words.
    """
    found = _words(answer)
    return max((_f1(found, _words(reference)) for reference in references), default=0.0)


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(normalise(text)))


def _f1(found: Counter[str], expected: Counter[str]) -> float:
    shared = (found & expected).total()
    return 2 * shared / (found.total() + expected.total()) if shared else 0.0
