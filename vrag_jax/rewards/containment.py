"""Whether an answer, perhaps a sentence, says what a reference says, and nothing besides.

A reward that is given wherever the reference occurs would soon be earned by answers that list
everything. So what an answer adds to the question and the reference is bounded, too.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from vrag_jax.rewards.answer_matching import IDEOGRAPH, THOUSANDS, exact_match, normalise

ADDED_WORDS = 2
"""Words that may stand beside the reference which are neither the question's nor common ones."""
CHARACTERS_A_WORD = 2
"""Chinese and Japanese characters that count as one word of `ADDED_WORDS`."""

# Between digits these join two numbers to one thing: 2019-2020, 12:30, 3/4, 1,5. Each becomes
# a character of its own, which `normalise` leaves as it is.
_JOINTS = {joint: chr(0xE000 + i) for i, joint in enumerate('-:/,')}
_JOINT = re.compile(r'(?<=\d)[-\u2010-\u2015:/,](?=\d)')
_NUMBER = r'-?(?:\d+(?:[.\ue000-\ue003]\d+)*|\.\d+)'
_ORDINAL = r'\d+(?:st|nd|rd|th)\b'
_TOKEN = re.compile(rf'{_ORDINAL}|{_NUMBER}|{IDEOGRAPH}|(?:(?!{IDEOGRAPH})[^\W_])+|\S')
_IS_NUMBER = re.compile(rf'{_NUMBER}|{_ORDINAL}')
_IS_IDEOGRAPH = re.compile(IDEOGRAPH)

# Where one statement, or one item of a list, ends and the next begins.
_PIECE = re.compile(
    r'[\n;!?(){}\[\]|。，、；！？：（）]+|[,:/.](?=\s|$)|\s[-\u2010-\u2015]+\s|\s&\s|/(?!\d)|,(?!\d)'
    r'|\b(?:and|or|but|nor|so|because|while|whereas|although|though)\b|但|而是|或者?|以及',
    re.IGNORECASE)

_NEGATION = re.compile(
    r"\b(?:no|not|never|neither|nor|none|nobody|nothing|cannot|without|except|unlike|wrong|false|"
    r"incorrect|untrue|(?:is|are|was|were|do|does|did|ca|could|wo|would|should|has|have|had|ai)nt)\b"
    r'|(?:instead|rather|other) (?:of|than)'
    r'|不是|不在|不能|不会|没有|没|并非|而非|而不|未能|尚未|错误|ない|ません')

# What makes another statement of one about the same thing: 'less than 5' is not 5. Where the
# question or the reference says so itself it changes nothing.
_QUALIFIERS = frozenset(
    'hardly barely scarcely less fewer more greater lower higher before after under over above '
    'below until since beyond minus impossible unlikely denied except neither'.split())

# What sentences are made of, and how answers refer to where they come from.
_COMMON = frozenset(
    'a an the is are was were be been being has have had does do did will would can could may '
    'of in on at to for from by with as into per than that this these those there here it its '
    'they them their he his she her we our i you your which who whose what when where how '
    'according based answer answers reference question page pages document figure table chart '
    'graph slide image text shown given stated says said shows show about approximately around '
    'roughly exactly nearly almost respectively total yes therefore thus final boxed '
    '的 是 为 在 了 和 有 个 这 那 于 与 中 年 月 日 所 以 其 该 它 他 她 们 上 下 时 者 被 由 '
    '约 共 は が を に の で と も た す ま し て い る だ'.split())

# Amounts are compared without their currency, which must not be another one.
_CURRENCIES = {word: symbol for symbol, words in {
    '$': '$ usd dollar dollars', '€': '€ eur euro euros', '£': '£ gbp', '₹': '₹ inr rupee rupees',
    '¥': '¥ jpy cny rmb yen yuan', '₩': '₩ krw'}.items() for word in words.split()}

_SPELLED = dict(enumerate(
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen '
    'sixteen seventeen eighteen nineteen twenty'.split()))
_SPELLED_AS = ({word: str(number) for number, word in _SPELLED.items()}
               | {str(number): word for number, word in _SPELLED.items()})

# What may stand before a yes or no: 'the answer is yes', but not 'there is no red'.
_INTRODUCTION = frozenset('the final answer statement claim is it actually so that'.split())
_YES = ('yes', 'true', '是', '是的', '对', 'はい')
_NO = ('no', 'false', '否', '不', '不是', 'いいえ')


def contains(answer: str, references: Iterable[str], question: str = '') -> float:
    """Returns 1.0 if an answer says what a reference says and nothing besides, else 0.0.

    An answer that equals a reference after `normalise` does. Otherwise the answer is cut into
    pieces at punctuation and words such as 'and'. It says what the reference says where

    - the reference occurs as whole words, by the character in Chinese and Japanese; a number
      is one word: 12 is not in 2012, 12.5, 12:30 or 10-12, nor 5 in -5; up to twenty it may be
      spelled; a currency may be left out or written otherwise (USD 412 million, $412 million),
      but not be another one;
    - the pieces in which it occurs have no negation outside of it ('not 2014', 'not: 2014'), and
      no word that makes it another statement ('less than 5');
    - of alternatives that the question names ('red, blue or green') it says no other;
    - these pieces add no other number than those of the question, and at most `ADDED_WORDS`
      words that are neither the question's nor common ones;
    - other pieces, unless they are negated ('not blue'), add nothing at all.

    A reference that is a yes or no is compared with the answer's first word, and the opposite
    must not begin another piece.

    Args:
      answer: what was said.
      references: accepted answers.
      question: what was asked; its words may be repeated.
    """
    accepted = tuple(references)
    if exact_match(answer, accepted):
        return 1.0
    accepted += tuple(_SPELLED_AS[x] for x in map(normalise, accepted) if x in _SPELLED_AS)
    pieces = _pieces(answer)
    asked = _pieces(question)
    return float(any(_says(pieces, reference, asked) for reference in accepted))


def _says(pieces: Sequence[Sequence[str]], reference: str, asked: Sequence[Sequence[str]]
          ) -> bool:
    sought = [token for piece in _pieces(reference) for token in piece]
    paid = _currencies([sought])
    if paid and any(token not in _CURRENCIES for token in sought):
        if not _currencies(pieces) <= paid:
            return False
        [sought], pieces, asked = map(_amounts, ([sought], pieces, asked))
    if not sought or not pieces:
        return False
    known = {token for piece in asked for token in piece}
    known |= {_SPELLED_AS[token] for token in sought if token in _SPELLED_AS}
    for same, opposite in ((_YES, _NO), (_NO, _YES)):
        if normalise(reference) in same:
            return _begins(pieces[0], same) and not any(
                _begins(piece, opposite) for piece in pieces)
    others = _alternatives(asked, sought)
    if any(_holds(piece, other) for piece in pieces if not _is_negated(piece) for other in others):
        return False
    tokens = [token for piece in pieces for token in piece]
    owner = [number for number, piece in enumerate(pieces) for _ in piece]
    return any(
        _stands_alone(pieces, owner, start, len(sought), known | set(sought))
        for start in range(len(tokens) - len(sought) + 1)
        if tokens[start : start + len(sought)] == sought)


def _currencies(pieces: Sequence[Sequence[str]]) -> set[str]:
    return {_CURRENCIES[token] for piece in pieces for token in piece if token in _CURRENCIES}


def _amounts(pieces: Sequence[Sequence[str]]) -> list[list[str]]:
    """The pieces without their currencies; none is empty."""
    cut = ([token for token in piece if token not in _CURRENCIES] for piece in pieces)
    return [piece for piece in cut if piece]


def _alternatives(asked: Sequence[Sequence[str]], sought: Sequence[str]) -> list[list[str]]:
    """What a question offers beside the reference: of its pieces, those of the same kind.

    In 'which of red, blue and green is largest' they are, for 'blue', 'red' and 'green': the
    ends of the pieces before it and the beginnings of those after it.
    """
    places = [number for number, piece in enumerate(asked) if _holds(piece, sought)]
    if not places or len(asked) < 2:
        return []
    size, place = len(sought), places[0]
    beside = [list(piece[-size:]) for piece in asked[:place]]
    beside += [list(piece[:size]) for piece in asked[place + 1 :]]
    number = bool(_IS_NUMBER.fullmatch(sought[-1]))
    return [other for other in beside if other != list(sought) and not _COMMON.issuperset(other)
            and bool(_IS_NUMBER.fullmatch(other[-1])) == number]


def _holds(piece: Sequence[str], sought: Sequence[str]) -> bool:
    size = len(sought)
    return any(list(piece[i : i + size]) == list(sought) for i in range(len(piece) - size + 1))


def _begins(piece: Sequence[str], words: Iterable[str]) -> bool:
    answers = {token for word in (*_YES, *_NO) for token in _tokens(word)}
    start = next((i for i, token in enumerate(piece)
                  if token in answers or token not in _INTRODUCTION), 0)
    piece = piece[start:]
    return any(list(piece[: len(start)]) == start for start in (_tokens(word) for word in words))


def _stands_alone(pieces: Sequence[Sequence[str]], owner: Sequence[int], start: int, length: int,
                  known: set[str]) -> bool:
    """Whether an occurrence is not negated, and little is said beside it."""
    first, last = owner[start], owner[start + length - 1]
    begin = owner.index(first)
    own = [token for piece in pieces[first : last + 1] for token in piece]
    beside = (own[: start - begin], own[start - begin + length :])
    if any(_is_negated(part) for part in beside):
        return False
    if first and _is_negated(pieces[first - 1]) and not _content(pieces[first - 1], known):
        return False  # 'It is not: 2014'.
    if any(token in _QUALIFIERS - known for part in beside for token in part):
        return False
    others = [piece for piece in (*pieces[:first], *pieces[last + 1 :]) if not _is_negated(piece)]
    if any(_added(piece, known) for piece in others):
        return False
    added = _added([token for part in beside for token in part], known)
    if any(_IS_NUMBER.fullmatch(token) for token in added):
        return False
    words = sum(1 / CHARACTERS_A_WORD if _IS_IDEOGRAPH.match(token) else 1 for token in added)
    return words <= ADDED_WORDS


def _is_negated(tokens: Sequence[str]) -> bool:
    text = ' '.join(tokens)
    return bool(_NEGATION.search(re.sub(rf'(?<={IDEOGRAPH}) (?={IDEOGRAPH})', '', text)))


def _content(tokens: Sequence[str], known: set[str]) -> list[str]:
    """Words of a negated piece that it could be about, instead of what follows it."""
    return [token for token in _added(tokens, known) if not _is_negated([token])
            and token not in _QUALIFIERS]


def _added(tokens: Iterable[str], known: set[str]) -> list[str]:
    return [token for token in tokens if token not in known and token not in _COMMON]


def _pieces(text: str) -> list[list[str]]:
    """Cuts a text into pieces, each a list of tokens; none is empty."""
    folded = unicodedata.normalize('NFKC', text).replace('\u2212', '-')
    folded = THOUSANDS.sub(lambda match: match[0].replace(',', ''), folded)
    joined = _JOINT.sub(lambda match: _JOINTS.get(match[0], _JOINTS['-']), folded)
    cut = (_tokens(piece) for piece in _PIECE.split(joined))
    return [tokens for tokens in cut if tokens]


def _tokens(piece: str) -> list[str]:
    found = _TOKEN.findall(normalise(piece))
    return [token for token in found if not unicodedata.category(token[0]).startswith('P')
            or _IS_NUMBER.fullmatch(token)]
