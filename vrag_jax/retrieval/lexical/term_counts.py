"""Counts the terms of texts as sparse matrices over hash buckets."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.utils import murmurhash3_32

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.lexical import terms as vocabulary
from vrag_jax.retrieval.lexical.terms import Terms

GROUPS = ('words', 'phrases', 'pieces', 'singles')
_MIX = np.uint64(0x9E3779B97F4A7C15)
_TURN, _HALF = np.uint64(29), np.uint64(32)
_PLAIN = re.compile('[A-Za-z0-9]+')


class Counts(NamedTuple):
    """Counts of terms, of some texts.

    Attributes:
      terms: int32 [T], ascending: buckets that occur, those of `GROUPS[g]` from g * buckets on.
      matrix: CSR int32 [texts, T], columns in order in each row.
    """

    terms: np.ndarray
    matrix: sp.csr_matrix

    def lengths(self, buckets: int) -> np.ndarray:
        """Returns how many terms of each group each text has, int64 [groups, texts]."""
        group = self.terms // buckets
        return np.stack([self.matrix @ (group == g).astype(np.int64) for g in range(len(GROUPS))])


class _Numbers(dict[str, int]):
    """Numbers tokens in the order in which they are met."""

    def __missing__(self, token: str) -> int:
        self[token] = number = len(self)
        return number


def count_pages(texts: Sequence[str], buckets: int, groups: Sequence[str] = GROUPS) -> Counts:
    """Counts the terms of pages' texts, see `terms.split_terms`.

    Tokens repeat: the terms of each are made and hashed once, the counts are the product of
    the texts' tokens with the tokens' terms. The phrases between tokens are added.

    Args:
      texts: of the pages.
      buckets: of hashes, of each group.
      groups: those of `GROUPS` that are counted.
    """
    wanted = tuple(group in groups for group in GROUPS)
    numbers = _Numbers()
    found = [list(map(numbers.__getitem__, vocabulary.tokens_of(text))) for text in texts]
    ends = np.cumsum([0, *map(len, found)])
    tokens = np.concatenate([np.zeros(0, np.int32), *(np.array(f, np.int32) for f in found)])
    del found
    described = [(_hashed if _PLAIN.fullmatch(token) else _hash)(token, buckets, wanted)
                 for token in numbers]
    columns = np.concatenate([np.zeros(0, np.int32), *(columns for columns, _, _ in described)])
    sizes = np.array([len(columns) for columns, _, _ in described], np.int64)
    borders = np.array([border for _, *border in described], np.uint64).reshape(-1, 2)
    # Phrases of a token's last word and the next one's first.
    starts = np.zeros(len(tokens) + 1, bool)
    starts[ends] = True
    left, right = borders[tokens[:-1], 1], borders[tokens[1:], 0]
    pair = np.flatnonzero((left > 0) & (right > 0) & ~starts[1:len(tokens)] & wanted[1])
    phrases = (_phrase_hash(left[pair], right[pair]) % np.uint64(buckets)).astype(np.int64)
    rows = np.repeat(np.arange(len(texts), dtype=np.int32), np.diff(ends))[pair]

    used, places = np.unique(
        np.concatenate([columns, (phrases + buckets).astype(np.int32)]), return_inverse=True)
    own = sp.csr_matrix((np.ones(len(columns), np.int32), places[:len(columns)].astype(np.int32),
                         np.concatenate([[0], np.cumsum(sizes)])), (len(numbers), len(used)))
    texts_tokens = sp.csr_matrix((np.ones(len(tokens), np.int32), tokens, ends),
                                 (len(texts), len(numbers)))
    texts_tokens.sum_duplicates()
    between = sp.csr_matrix((np.ones(len(pair), np.int32), (rows, places[len(columns):])),
                            (len(texts), len(used)))
    matrix = texts_tokens @ own + between
    matrix.sort_indices()
    return Counts(used.astype(np.int32), matrix)


def count_query(text: str, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the terms of a query, int32 [T] ascending, and their counts; see `query_terms`."""
    columns, _, _ = _of_terms(vocabulary.query_terms(text), buckets)
    return np.unique(columns, return_counts=True)


def check_version(folder: Path, fields: Mapping[str, Any]) -> None:
    """Raises an ArtifactError if what lies in a folder was made of terms of another vocabulary."""
    found = fields.get('terms', 1) if isinstance(fields, Mapping) else None
    if found != vocabulary.VERSION:
        raise ArtifactError(f'{folder}: its words were split by version {found} of the vocabulary, '
                            f'this is version {vocabulary.VERSION}')


def _hash(token: str, buckets: int, wanted: tuple[bool, ...]) -> tuple[np.ndarray, int, int]:
    return _of_terms(vocabulary.token_terms(token), buckets, wanted)


_hashed = functools.lru_cache(maxsize=1 << 17)(_hash)  # Runs of CJK hardly come again.


def _of_terms(terms: Terms, buckets: int, wanted: tuple[bool, ...] = (True,) * len(GROUPS)
              ) -> tuple[np.ndarray, int, int]:
    """Returns columns of terms, with repetitions, int32, and hashes of first and last words."""
    columns = [_word_hash(word) % buckets for word in terms.words if wanted[0]]
    for phrase in terms.phrases if wanted[1] else ():
        first, space, last = phrase.partition(' ')
        number = _pair_hash(first, last) if space else _word_hash(phrase)
        columns.append(number % buckets + buckets)
    columns += [_word_hash(single) % buckets + 3 * buckets for single in terms.singles
                if wanted[3]]
    pieces = [_piece_columns(word, buckets) for word in terms.spelled if wanted[2]]
    return (np.concatenate([np.array(columns, np.int32), *pieces]),
            _word_hash(terms.first) if terms.first else 0,
            _word_hash(terms.last) if terms.last else 0)


@functools.lru_cache(maxsize=1 << 17)
def _piece_columns(word: str, buckets: int) -> np.ndarray:
    hashes = [murmurhash3_32(piece, positive=True)
              for piece in vocabulary.word_pieces(word)]
    return np.array([number % buckets + 2 * buckets for number in hashes], np.int32)


@functools.lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    """Returns a positive number of 32 bits for a word."""
    return murmurhash3_32(word, positive=True) or 1


def _pair_hash(first: str, last: str) -> int:
    return int(_phrase_hash(*np.array([[_word_hash(first)], [_word_hash(last)]], np.uint64))[0])


def _phrase_hash(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Returns numbers uint64 for pairs of words' hashes, uint64."""
    with np.errstate(over='ignore'):
        mixed = ((first << _HALF) | last) * _MIX
        return ((mixed ^ (mixed >> _TURN)) * _MIX) >> _HALF
