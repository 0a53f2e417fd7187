"""Dense unit vectors of page texts whose inner products are BM25 scores."""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.lexical.inverted_lists import Weighting
from vrag_jax.retrieval.lexical.term_counts import (
    GROUPS,
    Counts,
    check_version,
    count_pages,
    count_query,
)
from vrag_jax.retrieval.lexical.terms import VERSION

_STATE = 'ngram.npz'
_BLOCK = 256  # Columns of a product of matrices.
_FEW_PAGES = 64  # Reading the pages of a piece that so few have costs next to nothing.
_PIECES = GROUPS.index('pieces')


@dataclasses.dataclass(frozen=True)
class NgramConfig:
    """Weighting and size of the vectors.

    Attributes:
      dims: size of a vector at most, but for one, and so of a corpus that has vectors; a larger
        one is searched in inverted lists, by the same weights.
      buckets: of hashes for each of words, phrases, pieces and what only some queries look for;
        next to nothing shares one.
      k1, b: saturation and length normalisation of BM25.
      phrase_weight, piece_weight: of a phrase and of a piece against a word.
      piece_share: pieces that a greater share of the pages has, and more than 64 of them,
        are left out: they tell little, and most of the work of a query would be theirs.
        1 keeps all.
    """

    dims: int = 4096
    buckets: int = 1 << 28
    k1: float = 1.2
    b: float = 0.75
    phrase_weight: float = 0.5
    piece_weight: float = 0.1
    piece_share: float = 0.25

    def __post_init__(self):
        if self.dims < 1:
            raise ValueError(f'dims must be positive, got {self.dims}')
        if not 1 <= self.buckets <= 1 << 28:
            raise ValueError(f'buckets must be in [1, 2**28], got {self.buckets}')
        for name in ('k1', 'phrase_weight', 'piece_weight'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')
        for name in ('b', 'piece_share'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must be in [0, 1], got {getattr(self, name)}')

    @property
    def weighting(self) -> Weighting:
        """The same for inverted lists."""
        return Weighting((1.0, self.phrase_weight, self.piece_weight, 1.0), self.k1, self.b,
                         self.piece_share, _FEW_PAGES, True, self.buckets)


class NgramEncoder:
    """Lexical page encoder for texts of any script.

    A page is the sparse vector p of its terms' BM25 weights (Robertson and
    Zaragoza 2009), a query the vector q of its terms' counts (sublinear), so
    that p.q is the BM25 score. Both are projected on the span of the pages
    B [m, terms]: with B B^T = L L^T, x becomes L^-1 B x, which keeps every
    page's score exactly. A truncated SVD would be smaller, but it confuses pages
    that differ in one rare word. A last component sqrt(1 - |p|^2), after dividing
    by the longest page's norm, makes page rows unit and leaves the order of the
    scores as it is (Neyshabur and Srebro 2015).
    """

    kind = 'ngram'

    def __init__(self, config: NgramConfig = NgramConfig()):  # noqa: B008 (immutable)
        self.config = config
        self._state: dict[str, np.ndarray] = {}

    def fit(self, texts: Sequence[str]) -> None:
        """Learns term weights and components from a corpus's page texts.

        Raises:
          ValueError: if there is no text, none holds a term, or there are more than `dims`.
        """
        if not texts:
            raise ValueError('no page to fit the encoder on')
        if len(texts) > self.config.dims:
            raise ValueError(f'{len(texts)} pages are more than the dims = {self.config.dims} of '
                             'a vector; NgramListsRetriever searches so many')
        counts = count_pages(texts, self.config.buckets)
        having = np.bincount(counts.matrix.indices, minlength=len(counts.terms))
        idf = np.log1p((len(texts) - having + 0.5) / (having + 0.5))
        pieces = counts.terms // self.config.buckets == _PIECES
        idf[pieces & (having > max(self.config.piece_share * len(texts), _FEW_PAGES))] = 0
        state = {'lengths': counts.lengths(self.config.buckets).mean(axis=1),
                 'terms': counts.terms, 'idf': idf}
        pages = self._weigh_pages(counts, state)
        if not pages.nnz:
            raise ValueError(f'none of the {len(texts)} page texts holds a word; scanned pages '
                             "have text only with OCR (config.retrieval.ingestion.ocr='auto', of a "
                             'manifest config.retrieval.ocr=True)')
        self._set_state({
            **state, 'mix': _orthonormaliser((pages @ pages.T).toarray()),
            'norm': np.asarray(scipy.sparse.linalg.norm(pages, axis=1).max(), np.float32),
            'data': pages.data, 'indices': pages.indices, 'indptr': pages.indptr})

    def encode_pages(self, texts: Sequence[str]) -> np.ndarray:
        """Returns [N, D] float32 unit rows."""
        state = self._fitted()
        pages = self._weigh_pages(count_pages(texts, self.config.buckets), state)
        rows = self._project(pages) / state['norm']
        # A page that was not fitted on may be longer than the longest that was.
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)
        rest = np.sqrt(np.maximum(1 - np.square(rows).sum(axis=1, keepdims=True), 0))
        return np.concatenate([rows, rest], axis=1).astype(np.float32)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Returns [N, D] float32 unit rows; all zeros if no term is on any page."""
        state = self._fitted()
        found = [count_query(text, self.config.buckets) for text in texts]
        terms = np.concatenate([np.zeros(0, np.int32), *(terms for terms, _ in found)])
        counts = np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in found)])
        ends = np.cumsum([0, *(len(terms) for terms, _ in found)])
        places, known = _places(state['terms'], terms)
        # Weights of a group stand half on each side of the product.
        data = self._half_weights(terms) * (1 + np.log(counts))
        rows = self._project(sp.csr_matrix(
            (data[known].astype(np.float32), places[known],
             np.concatenate([[0], np.cumsum(known)])[ends]),
            (len(texts), len(state['terms']))))
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
        return {'config': dataclasses.asdict(self.config), 'fingerprint': self.fingerprint,
                'terms': VERSION}

    @classmethod
    def from_files(cls, folder: Path, fields: dict[str, Any]) -> 'NgramEncoder':
        """Reads what `write_files` wrote.

        Raises:
          ArtifactError: if the state is not the one that the fields describe, or of terms of
            another vocabulary.
        """
        check_version(folder, fields)
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

    def _half_weights(self, terms: np.ndarray) -> np.ndarray:
        return np.sqrt(self.config.weighting.groups)[terms // self.config.buckets]

    def _weigh_pages(self, counts: Counts, state: dict[str, np.ndarray]) -> sp.csr_matrix:
        """Returns the pages' weights of the terms of a state, float32 [pages, terms]."""
        k1, b = self.config.k1, self.config.b
        matrix = counts.matrix
        slopes = k1 * (1 - b + b * counts.lengths(self.config.buckets)
                       / np.maximum(state['lengths'], 1e-9)[:, None])
        groups = counts.terms // self.config.buckets
        row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        places, known = _places(state['terms'], counts.terms)
        weights = self._half_weights(counts.terms) * np.where(known, state['idf'][places], 0)
        data = weights[matrix.indices] * matrix.data * (k1 + 1) / (
            matrix.data + slopes[groups[matrix.indices], row])
        pages = sp.csr_matrix((data.astype(np.float32), places[matrix.indices], matrix.indptr),
                              (matrix.shape[0], len(state['terms'])))
        pages.eliminate_zeros()
        return pages

    def _project(self, rows: sp.csr_matrix) -> np.ndarray:
        # In float64: what float32 rounds differently where other rows stand beside a row
        # (BLAS may) would put hits in another order.
        exact = (rows @ self._basis).toarray().astype(np.float64)
        return np.concatenate([exact[:, :len(block)] @ block for block in self._mix], axis=1)

    def _set_state(self, state: dict[str, np.ndarray]) -> None:
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config)).encode())
        for name in sorted(state):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(state[name]).tobytes())
        self._fingerprint = digest.hexdigest()
        self._state = state
        self._basis = sp.csr_matrix(
            (state['data'], state['indices'], state['indptr']),
            (len(state['indptr']) - 1, len(state['terms']))).T.tocsr()
        # Nothing is below the diagonal: blocks of columns do without the rows that are.
        mix, ends = state['mix'], range(_BLOCK, len(state['mix']) + _BLOCK, _BLOCK)
        self._mix = [mix[:end, end - _BLOCK:end].astype(np.float64) for end in ends]

    def _fitted(self) -> dict[str, np.ndarray]:
        if not self._state:
            raise ValueError('the encoder has not been fitted')
        return self._state


def _places(known: np.ndarray, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where terms are among known ones, ascending and not none, and whether they are."""
    places = np.minimum(np.searchsorted(known, terms), len(known) - 1)
    return places, known[places] == terms


def _orthonormaliser(gram: np.ndarray) -> np.ndarray:
    """Returns L^-T [m, m] float32 for a Gram matrix L L^T [m, m]."""
    gram = gram.astype(np.float64)
    # Blank pages and copies of a page make the Gram matrix singular.
    gram[np.diag_indices_from(gram)] += 1e-6 * gram.diagonal().max()
    lower = scipy.linalg.cholesky(gram, lower=True)
    inverse = scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True)
    return np.ascontiguousarray(inverse.T, np.float32)

