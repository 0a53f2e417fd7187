"""Corpora of thousands of pages made from the real pages' ColQwen2 vectors, and queries."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# What the model adds to the image's grid of tokens: its prompt, before and after.
PREFIX, SUFFIX = 4, 7
_GRIDS = {779: (24, 32), 731: (20, 36)}


@dataclasses.dataclass(frozen=True)
class Mosaics:
    """Pages laid out of tiles of real pages, with noise; any page by itself.

    Attributes:
      real: token vectors of the real pages by their number of tokens.
      seed: of the corpus.
      tiles: a page has so many rows and columns of tiles.
      noise: norm of what is added to each unit token, which is then made unit again.
    """

    real: dict[int, np.ndarray]
    seed: int = 0
    tiles: int = 4
    noise: float = 0.3

    @classmethod
    def open(cls, file: Path, seed: int = 0) -> 'Mosaics':
        with np.load(file) as arrays:
            pages = [arrays[name].astype(np.float32) for name in sorted(arrays.files)]
        lengths = sorted({len(page) for page in pages})
        return cls({n: np.stack([p for p in pages if len(p) == n]) for n in lengths}, seed)

    def page(self, number: int) -> np.ndarray:
        """Returns [T, 128] float32 unit rows."""
        rng = np.random.default_rng([self.seed, number])
        length = int(rng.choice(list(self.real)))
        real, (rows, columns) = self.real[length], _GRIDS[length]
        source = rng.integers(len(real), size=(self.tiles, self.tiles))
        row = np.arange(rows) * self.tiles // rows
        column = np.arange(columns) * self.tiles // columns
        origin = np.full(length, source[0, 0])
        origin[PREFIX:-SUFFIX] = source[row[:, None], column].ravel()
        tokens = real[origin, np.arange(length)]
        return _noisy(tokens, self.noise, rng)

    def pages(self, count: int) -> Iterator[np.ndarray]:
        return (self.page(number) for number in range(count))

    def query(self, number: int, count: int, tokens: int = 20, noise: float = 1.0
              ) -> tuple[np.ndarray, int]:
        """Returns a query of [tokens, 128] from tokens of one of `count` pages, and which."""
        rng = np.random.default_rng([self.seed, 1, number])
        target = int(rng.integers(count))
        page = self.page(target)
        chosen = rng.choice(len(page) - SUFFIX - PREFIX, size=tokens, replace=False) + PREFIX
        return _noisy(page[chosen], noise, rng), target


def _noisy(tokens: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    step = rng.standard_normal(tokens.shape, np.float32) * (noise / np.sqrt(tokens.shape[1]))
    tokens = tokens + step
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
