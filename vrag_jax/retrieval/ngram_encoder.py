"""Dense unit vectors of page texts whose inner products are BM25 scores."""

import dataclasses
import functools
import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg
from sklearn.feature_extraction import FeatureHasher
from sklearn.utils import murmurhash3_32

from vrag_jax.retrieval.artifact import ArtifactError
from vrag_jax.retrieval.terms import split_terms, word_pieces

_GROUPS = ('words', 'phrases', 'pieces')
_STATE = 'ngram.npz'
_BLOCK = 256  # Columns of a product of matrices.
_FEW_PAGES = 64  # Reading the pages of a piece that so few have costs next to nothing.


@dataclasses.dataclass(frozen=True)
class NgramConfig:
    """Weighting and size of the vectors.

    Attributes:
      dims: size of a vector at most, but for one. A corpus of no more pages is
        represented exactly, a larger one by a sketch.
      buckets: hash buckets for each of words, phrases and pieces.
      k1, b: saturation and length normalisation of BM25.
      phrase_weight, piece_weight: of a phrase and of a piece against a word.
      piece_share: pieces that a greater share of the pages has, and more than 64 of them,
        are left out: they tell little, and most of the work of a query would be theirs.
        1 keeps all.
      seed: of the sketch.
    """

    dims: int = 4096
    buckets: int = 1 << 20
    k1: float = 1.2
    b: float = 0.75
    phrase_weight: float = 0.5
    piece_weight: float = 0.1
    piece_share: float = 0.25
    seed: int = 0

    def __post_init__(self):
        for name in ('dims', 'buckets'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        for name in ('k1', 'phrase_weight', 'piece_weight'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')
        for name in ('b', 'piece_share'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must be in [0, 1], got {getattr(self, name)}')


class NgramEncoder:
    """Lexical page encoder for English and Chinese.

    A page is the sparse vector p of its terms' BM25 weights (Robertson and
    Zaragoza 2009), a query the vector q of its terms' counts (sublinear), so
    that p.q is the BM25 score. Both are projected on the span of the pages
    B [m, terms]: with B B^T = L L^T, x becomes L^-1 B x, which keeps every
    page's score exactly. A truncated SVD would be smaller, but it confuses pages
    that differ in one rare word. A corpus of more than `dims` pages is projected
    by a count sketch (Charikar et al. 2002), whose scores are unbiased. A last
    component sqrt(1 - |p|^2), after dividing by the longest page's norm, makes
    page rows unit and leaves the order of the scores as it is (Neyshabur and
    Srebro 2015).
    """

    kind = 'ngram'

    def __init__(self, config: NgramConfig = NgramConfig()):  # noqa: B008 (immutable)
        self.config = config
        self._hasher = FeatureHasher(config.buckets, input_type='string', dtype=np.float32,
                                     alternate_sign=False)
        self._state: dict[str, np.ndarray] = {}

    def fit(self, texts: Sequence[str]) -> None:
        """Learns term weights and components from a corpus's page texts.

        Raises:
          ValueError: if there is no text, or none holds a term.
        """
        if not texts:
            raise ValueError('no page to fit the encoder on')
        counts = list(self._counts(texts))
        lengths = np.array([c.sum() / len(texts) for c in counts], np.float32)
        idf = np.concatenate([_idf(c) for c in counts])
        common = np.bincount(counts[-1].indices, minlength=self.config.buckets) > max(
            self.config.piece_share * len(texts), _FEW_PAGES)
        idf[-self.config.buckets:][common] = 0
        pages = self._weigh_pages(counts, lengths, idf)
        if not pages.nnz:
            raise ValueError(f'none of the {len(texts)} page texts holds a word; scanned pages '
                             'have text only with OCR (config.retrieval.ocr=True)')
        if len(texts) <= self.config.dims:
            basis, mix, rows = pages, _orthonormaliser((pages @ pages.T).toarray()), pages
        else:
            basis = _count_sketch(np.unique(pages.indices), pages.shape[1], self.config)
            mix, rows = np.zeros((0, 0), np.float32), pages @ basis.T
        self._set_state({
            'lengths': lengths, 'idf': idf, 'mix': mix,
            'norm': np.asarray(scipy.sparse.linalg.norm(rows, axis=1).max(), np.float32),
            'data': basis.data, 'indices': basis.indices, 'indptr': basis.indptr})

    def encode_pages(self, texts: Sequence[str]) -> np.ndarray:
        """Returns [N, D] float32 unit rows."""
        state = self._fitted()
        pages = self._weigh_pages(list(self._counts(texts)), state['lengths'], state['idf'])
        rows = self._project(pages) / state['norm']
        # A page that was not fitted on may be longer than the longest that was.
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)
        rest = np.sqrt(np.maximum(1 - np.square(rows).sum(axis=1, keepdims=True), 0))
        return np.concatenate([rows, rest], axis=1).astype(np.float32)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Returns [N, D] float32 unit rows; all zeros if no term is on any page."""
        self._fitted()
        weighted = []
        for counts, weight in zip(self._counts(texts), self._group_weights(), strict=True):
            # Weights of a group stand half on each side of the product.
            counts.data = np.sqrt(weight, dtype=np.float32) * (1 + np.log(counts.data))
            weighted.append(counts)
        rows = self._project(sp.hstack(weighted, 'csr'))
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        return np.concatenate([rows, np.zeros_like(norms)], axis=1).astype(np.float32)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of config and state."""
        self._fitted()
        return self._fingerprint

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes the fitted state; returns the fields to read it by."""
        arrays: dict[str, Any] = dict(self._fitted())
        np.savez(folder / _STATE, **arrays)
        return {'config': dataclasses.asdict(self.config), 'fingerprint': self.fingerprint}

    @classmethod
    def from_files(cls, folder: Path, fields: dict[str, Any]) -> 'NgramEncoder':
        """Reads what `write_files` wrote.

        Raises:
          ArtifactError: if the state is not the one that the fields describe.
        """
        try:
            encoder = cls(NgramConfig(**fields['config']))
            with np.load(folder / _STATE, allow_pickle=False) as file:
                encoder._set_state({name: file[name] for name in file.files})
            fingerprint = fields['fingerprint']
        except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise ArtifactError(f'{folder / _STATE}: {error!r}') from error
        if encoder.fingerprint != fingerprint:
            raise ArtifactError(f'{folder / _STATE}: fingerprint {encoder.fingerprint[:12]}, '
                                f'expected {fingerprint[:12]}')
        return encoder

    def _counts(self, texts: Sequence[str]) -> Iterator[sp.csr_matrix]:
        terms = [split_terms(text) for text in texts]
        yield self._hasher.transform([t.words for t in terms])
        yield self._hasher.transform([t.phrases for t in terms])
        # Words have many pieces each, and come again: theirs are hashed once.
        buckets, spelled = self.config.buckets, [t.spelled for t in terms]
        found = [_piece_buckets(word, buckets) for words in spelled for word in words]
        ends = np.cumsum([0, *map(len, found)], dtype=np.int32)
        rows = np.cumsum([0, *map(len, spelled)])
        indices = np.concatenate([np.zeros(0, np.int32), *found])
        pieces = sp.csr_matrix((np.ones(len(indices), np.float32), indices, ends[rows]),
                               (len(texts), buckets))
        pieces.sum_duplicates()
        yield pieces

    def _group_weights(self) -> tuple[float, ...]:
        return 1.0, self.config.phrase_weight, self.config.piece_weight

    def _weigh_pages(self, counts: list[sp.csr_matrix], lengths: np.ndarray, idf: np.ndarray
                     ) -> sp.csr_matrix:
        k1, b = self.config.k1, self.config.b
        groups = []
        for group, weight, mean in zip(counts, self._group_weights(), lengths, strict=True):
            length = np.asarray(group.sum(axis=1)).ravel() / max(mean, 1e-9)
            slope = np.repeat(k1 * (1 - b + b * length), np.diff(group.indptr))
            group.data = np.sqrt(weight) * group.data * (k1 + 1) / (group.data + slope)
            groups.append(group)
        pages = sp.hstack(groups, 'csr')
        pages.data = (pages.data * idf[pages.indices]).astype(np.float32)
        pages.eliminate_zeros()
        return pages

    def _project(self, rows: sp.csr_matrix) -> np.ndarray:
        terms = self._row_of_term[rows.indices]
        known = terms >= 0
        ends = np.concatenate([[0], np.cumsum(known, dtype=np.int32)])[rows.indptr]
        rows = sp.csr_matrix((rows.data[known], terms[known], ends),
                             (rows.shape[0], self._basis.shape[0]))
        projected = (rows @ self._basis).toarray()
        if not self._mix:
            return projected
        # In float64: what float32 rounds differently where other rows stand beside a row
        # (BLAS may) would put hits in another order.
        exact = projected.astype(np.float64)
        return np.concatenate([exact[:, :len(block)] @ block for block in self._mix], axis=1)

    def _set_state(self, state: dict[str, np.ndarray]) -> None:
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config)).encode())
        for name in sorted(state):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(state[name]).tobytes())
        self._fingerprint = digest.hexdigest()
        self._state = state
        shape = len(state['indptr']) - 1, len(_GROUPS) * self.config.buckets
        basis = sp.csr_matrix((state['data'], state['indices'], state['indptr']), shape).T.tocsr()
        # Only the terms that are used: most buckets are empty, and reading them is slow.
        used = np.flatnonzero(np.diff(basis.indptr))
        self._basis = basis[used]
        self._row_of_term = np.full(shape[1], -1, np.int32)
        self._row_of_term[used] = np.arange(len(used))
        # Nothing is below the diagonal: blocks of columns do without the rows that are.
        mix, ends = state['mix'], range(_BLOCK, len(state['mix']) + _BLOCK, _BLOCK)
        self._mix = [mix[:end, end - _BLOCK:end].astype(np.float64) for end in ends]

    def _fitted(self) -> dict[str, np.ndarray]:
        if not self._state:
            raise ValueError('the encoder has not been fitted')
        return self._state


@functools.lru_cache(maxsize=1 << 16)
def _piece_buckets(word: str, buckets: int) -> np.ndarray:
    """Returns the hash bucket of each piece of a word, as int32; see `FeatureHasher`."""
    hashes = [murmurhash3_32(piece) for piece in word_pieces(word)]
    return (np.abs(np.array(hashes, np.int64)) % buckets).astype(np.int32)


def _idf(counts: sp.csr_matrix) -> np.ndarray:
    """BM25's inverse document frequency of each column, float32."""
    total = counts.shape[0]
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    return np.log1p((total - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)


def _orthonormaliser(gram: np.ndarray) -> np.ndarray:
    """Returns L^-T [m, m] float32 for a Gram matrix L L^T [m, m]."""
    gram = gram.astype(np.float64)
    # Blank pages and copies of a page make the Gram matrix singular.
    gram[np.diag_indices_from(gram)] += 1e-6 * gram.diagonal().max()
    lower = scipy.linalg.cholesky(gram, lower=True)
    inverse = scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True)
    return np.ascontiguousarray(inverse.T, np.float32)


def _count_sketch(terms: np.ndarray, total: int, config: NgramConfig) -> sp.csr_matrix:
    """Returns a random [dims, total] matrix with one entry, 1 or -1, in each of `terms`."""
    rng = np.random.default_rng(config.seed)
    rows = rng.integers(config.dims, size=len(terms))
    signs = rng.choice(np.array([-1, 1], np.float32), size=len(terms))
    return sp.csr_matrix((signs, (rows, terms)), (config.dims, total))
