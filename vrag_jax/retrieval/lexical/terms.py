"""Splits texts of any script into the terms that search by words compares.

Pages and queries are normalised alike: NFKC (which is NFC and makes full-width forms narrow), case
folded, dotless and dotted i alike, without the accents of Greek, which capitals go without, and
vowel points of Arabic and Hebrew, which are seldom written, and without characters that are not
seen (soft hyphens, joiners, direction marks). U.S. is US; C, C++ and C# are three words.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Sequence

import regex

VERSION = 3
"""Of the vocabulary: terms of another one cannot be compared with these."""

# Scripts written without spaces between words, or with few; 々 and 〇 are Han. Hangul has
# spaces, but endings grow on its words.
_SPACELESS = '[{}]'.format(''.join(f'\\p{{scx={script}}}' for script in (
    'Han', 'Hira', 'Kana', 'Bopo', 'Hang', 'Thai', 'Laoo', 'Khmr', 'Mymr')))
_LETTER = f'[[\\p{{L}}\\p{{N}}]--{_SPACELESS}]'
_INNER = f'[[\\p{{L}}\\p{{N}}\\p{{M}}]--[[\\p{{L}}\\p{{N}}]&&{_SPACELESS}]]'
_CLUSTER = f'[[\\p{{L}}\\p{{N}}]&&{_SPACELESS}]\\p{{M}}*+'
_WORD = f'(?:[A-Za-z0-9]++|{_LETTER})(?:[A-Za-z0-9]++|{_INNER}++)*+'
# A hyphen may stand at the end of a line; what PDFium has in its place is U+FFFE or U+0002.
_HYPHEN = '[-\u2010\ufffe\x02](?:[ \\t\\r]*+\\n[ \\t]*+)?+'
# The second alternative and the look ahead only save time, of ASCII.
_TOKENS = regex.compile(
    '(?V1)[A-Za-z](?:\\+\\+|#)|[A-Za-z0-9]++(?![-\x02\x80-\U0010ffff])|(?=[^\\x00-/:-@\\[-`{-\x7f])'
    f'(?:{_WORD}(?:{_HYPHEN}{_WORD})*+|(?:{_CLUSTER})++)')
_WORDS = regex.compile(f'(?V1){_WORD}')
_CLUSTERS = regex.compile(f'(?V1){_CLUSTER}')
_BROKEN = re.compile('[\n\ufffe\x02]')
_LETTERS = regex.compile(r'\p{L}')
_UNSEEN = regex.compile(r'\p{Default_Ignorable_Code_Point}+')
_POINTS = re.compile('[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7'
                     '\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]')

_GREEK = regex.compile(r'(?V1)[\p{Script=Greek}]')
_ACCENTS = re.compile('[\u0300-\u036f]')
_DOTTED = re.compile(r'(?<![\w.])[A-Z](?:\.[A-Z])+(?!\w)\.?')

_JOINED_PARTS, _JOINED_LETTERS = 4, 40  # At most, of a hyphenated word that is one, too.

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
    """Terms of a text, or of a part of one, with repetitions.

    Attributes:
      words: words without stop words, hyphenated ones in parts; pairs of characters of scripts
        that are written without spaces.
      phrases: pairs of neighbouring words; triples of characters of such scripts.
      spelled: the words that are written in letters, whose pieces are terms, too.
      singles: what only some queries look for: hyphenated words as one, stop words, in capitals
        as they stand, too, and single characters of such scripts.
      first, last: words to which neighbours in a text are joined to phrases; '' for none.
    """

    words: Sequence[str] = ()
    phrases: Sequence[str] = ()
    spelled: Sequence[str] = ()
    singles: Sequence[str] = ()
    first: str = dataclasses.field(default='', compare=False)
    last: str = dataclasses.field(default='', compare=False)

    @property
    def pieces(self) -> list[str]:
        """The pieces of all words that have some."""
        return [piece for word in self.spelled for piece in word_pieces(word)]


def split_terms(text: str) -> Terms:
    """Splits the text of a page into terms."""
    return _joined([token_terms(token) for token in tokens_of(text)])


def query_terms(text: str) -> Terms:
    """Splits a query into terms.

    A word is looked for as it is and among those that pages hyphenate; a hyphenated one in parts
    and as one. Stop words in capitals among others ('US revenue', 'WHO guidelines') are
    abbreviations. A query of one stop word looks for it ('us'); single characters are looked for
    where they stand alone.
    """
    tokens = tokens_of(text)
    terms = _joined([token_terms(token) for token in tokens])
    words, singles = list(terms.words), []
    for token in tokens:
        if _CLUSTERS.match(token):
            run = _CLUSTERS.findall(token)
            singles += [fold(run[0])] if len(run) == 1 else []
            continue
        parts = [fold(part) for part in _parts(token)]
        if len(parts) == 1 and parts[0] not in STOP_WORDS:
            singles.append(parts[0])
        elif _whole(token, parts):
            words.append(_whole(token, parts))
    stop_words = [token for token in tokens if token.lower() in STOP_WORDS]
    capitals = [token for token in stop_words if is_abbreviation(token)]
    if len(capitals) > 1 and text == text.upper():
        capitals = []  # All is in capitals, which says nothing then.
    singles += capitals
    if len(tokens) == 1:
        singles += [token.lower() for token in stop_words]
    return dataclasses.replace(terms, words=words, singles=singles)


def tokens_of(text: str) -> list[str]:
    """Returns words, hyphenated ones whole, and runs of scripts without spaces, in order."""
    if not text.isascii():
        text = unicodedata.normalize('NFKC', _UNSEEN.sub('', text.replace('\u200b', ' ')))
    return _TOKENS.findall(_DOTTED.sub(lambda found: found[0].replace('.', ''), text))


def token_terms(token: str) -> Terms:
    """Returns the terms of a token of `tokens_of`."""
    if (token.isascii() and token.isalnum()) or not _CLUSTERS.match(token):
        return _word_terms(token)
    run = [fold(cluster) for cluster in _CLUSTERS.findall(token)]
    return Terms(_ngrams(run, 2) or [''.join(run)], _ngrams(run, 3), (), run)


def _word_terms(token: str) -> Terms:
    parts = _parts(token)
    folded = [fold(part) for part in parts]
    stops = [word in STOP_WORDS for word in folded]
    words = [word for word, stop in zip(folded, stops, strict=True) if not stop]
    phrases = [f'{a} {b}' for a, b, stop, other in zip(
        folded, folded[1:], stops, stops[1:], strict=False) if not (stop or other)]
    singles = [word for word, stop in zip(folded, stops, strict=True) if stop]
    singles += [part for part in parts if is_abbreviation(part)]
    spelled = list(words)
    whole = _whole(token, folded)
    if whole and _BROKEN.search(token):
        words.append(whole)
        spelled.append(whole)
    elif whole:
        singles.append(whole)
    return Terms(words, phrases, spelled, singles,
                 '' if stops[0] else folded[0], '' if stops[-1] else folded[-1])


def _parts(token: str) -> list[str]:
    """Returns the words of a token that is not of a script without spaces."""
    return [token] if token.isalnum() or token.endswith(('+', '#')) else _WORDS.findall(token)


def _whole(token: str, parts: Sequence[str]) -> str:
    """Returns a hyphenated word as one: longterm, covid19; '' for no such word."""
    if not 1 < len(parts) <= _JOINED_PARTS:
        return ''
    whole = ''.join(parts)
    return whole if len(whole) <= _JOINED_LETTERS and _LETTERS.search(whole) else ''


def is_abbreviation(token: str) -> bool:
    """Whether a token is a stop word in capitals: US, WHO, IT."""
    return len(token) > 1 and token.isupper() and token.lower() in STOP_WORDS


@functools.lru_cache(maxsize=1 << 16)
def fold(word: str) -> str:
    """Returns a word as all its forms in capitals, of other width or with points are compared."""
    if word.isascii():
        return word.lower()
    folded = unicodedata.normalize('NFC', word.casefold())
    if _GREEK.search(folded):
        folded = unicodedata.normalize(
            'NFC', _ACCENTS.sub('', unicodedata.normalize('NFD', folded)))
    # A capital I with a dot is folded to i and a combining dot; dotless i is a letter.
    return _POINTS.sub('', folded.replace('i\u0307', 'i').replace('\u0131', 'i')) or folded


def word_pieces(word: str) -> tuple[str, ...]:
    """Returns the n-grams of characters inside a word with its borders marked.

    They match other forms of a word and misread ones.
    """
    marked = f'<{word}>'
    return tuple(marked[i:i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1))


def _joined(parts: Sequence[Terms]) -> Terms:
    """Returns the terms of parts of a text that follow each other."""
    phrases: list[str] = []
    last = ''
    for part in parts:
        if last and part.first:
            phrases.append(f'{last} {part.first}')
        phrases += part.phrases
        last = part.last
    return Terms([word for part in parts for word in part.words], phrases,
                 [word for part in parts for word in part.spelled],
                 [single for part in parts for single in part.singles])


def _ngrams(clusters: Sequence[str], n: int) -> list[str]:
    return [''.join(clusters[i:i + n]) for i in range(len(clusters) - n + 1)]
