"""Cheap MaxSim bounds for many pages, from the centroids that their tokens are near."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.late_interaction.clustering import nearest_centres, spherical_kmeans

_CENTROIDS, _BITS = 'centroids.npy', 'centroid_bits.npy'
_TOKENS_A_CENTROID = 64  # On which centroids are learnt.
_ITERATIONS = 6
_PAGES = 32  # Compared with the centroids at a time.
_PROBES = 64  # Centroids of a query token that are looked for on a page, at most 255.


@dataclasses.dataclass(frozen=True)
class CentroidTable:
    """Approximates MaxSim by centroids instead of tokens, after PLAID (arXiv 2205.09707).

    A page is the set of centroids that its tokens are nearest to, one bit each. A query
    token's similarity to a page is that to the page's best centroid, among the token's
    64 nearest; the last of these stands for a page that has none of them. It takes about
    a microsecond a page, and runs on the host beside ScaNN.

    Attributes:
      centroids: [C, D] float32 unit rows; C is a multiple of 8.
      bits: [pages, C / 8] uint8, the first centroid in the highest bit.
    """

    centroids: np.ndarray
    bits: np.ndarray

    @classmethod
    def fit(cls, sample: np.ndarray, count: int, seed: int) -> 'CentroidTable':
        """Learns centroids from tokens [N, D] of the corpus; the table has no page yet."""
        if count < 8 or count % 8:
            raise ValueError(f'centroids must be a positive multiple of 8, got {count}')
        rng = np.random.default_rng(seed)
        size = min(len(sample), count * _TOKENS_A_CENTROID)
        sample = sample[rng.choice(len(sample), size, replace=False)].astype(np.float32)
        centroids = spherical_kmeans(sample, count, _ITERATIONS, rng)
        return cls(centroids, np.zeros((0, count // 8), np.uint8))

    def with_pages(self, pages: Iterable[np.ndarray]) -> 'CentroidTable':
        """Returns a table to which pages of [T, D] tokens each are added."""
        bits = [self.bits]
        pages = iter(pages)
        while group := list(itertools.islice(pages, _PAGES)):
            nearest = nearest_centres(np.concatenate(group), self.centroids)
            rows = np.zeros((len(group), len(self.centroids)), np.uint8)
            rows[np.repeat(np.arange(len(group)), [len(page) for page in group]), nearest] = 1
            bits.append(np.packbits(rows, axis=1))
        return dataclasses.replace(self, bits=np.concatenate(bits))

    def kept(self, rows: np.ndarray) -> 'CentroidTable':
        """Returns the table of some of its pages."""
        return dataclasses.replace(self, bits=self.bits[rows])

    def scores(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Returns approximate MaxSim [P] float32 of a query [T, D] with pages `rows` [P]."""
        products = query.astype(np.float32) @ self.centroids.T
        probes = min(_PROBES, products.shape[1])
        near = np.argpartition(-products, probes - 1, axis=1)[:, :probes]
        values = np.take_along_axis(products, near, axis=1)
        order = np.argsort(-values, axis=1)
        near = np.take_along_axis(near, order, axis=1)
        values = np.take_along_axis(values, order, axis=1)
        # Weights fall from `probes` to 1, so that the largest on a page names its best.
        weights = np.arange(probes, 0, -1, dtype=np.uint8)[:, None]
        values = np.concatenate([values[:, -1:], values[:, ::-1]], axis=1)
        byte, shift = near >> 3, (7 - (near & 7)).astype(np.uint8)
        columns = np.ascontiguousarray(self.bits[rows].T)
        total = np.zeros(len(rows), np.float32)
        for token in range(len(query)):
            has = columns[byte[token]] >> shift[token][:, None] & 1
            total += values[token][(has * weights).max(axis=0)]
        return total

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes the table; returns the fields to read it by."""
        np.save(folder / _CENTROIDS, self.centroids, allow_pickle=False)
        np.save(folder / _BITS, self.bits, allow_pickle=False)
        return {'pages': len(self.bits)}

    @classmethod
    def from_files(cls, folder: Path, fields: dict[str, Any]) -> 'CentroidTable':
        """Reads what `write_files` wrote; raises an ArtifactError if that is something else."""
        try:
            table = cls(np.load(folder / _CENTROIDS, allow_pickle=False),
                        np.load(folder / _BITS, allow_pickle=False))
        except (ValueError, OSError) as error:
            raise ArtifactError(f'{folder}: centroids: {error!r}') from error
        expected = fields.get('pages'), len(table.centroids) // 8
        if table.bits.shape != expected:
            raise ArtifactError(f'{folder / _BITS}: expected {expected}, got {table.bits.shape}')
        return table


def sample_tokens(pages: Sequence[np.ndarray], count: int, seed: int) -> np.ndarray:
    """Returns up to `count` tokens [N, D] float32, as many of each of the pages drawn."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(pages))[:4096]
    share = -(-count // len(drawn))
    parts = []
    for row in drawn:
        page = pages[row]
        parts.append(np.asarray(page[rng.permutation(len(page))[:share]], np.float32))
    return np.concatenate(parts)
