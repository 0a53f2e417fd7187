"""Corpora of thousands of pages made from the real pages' ColQwen2 vectors, and queries."""

import dataclasses
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
    tiles: int = 2
    noise: float = 0.3

    @classmethod
    def open(cls, file: Path, tiles: int = 2, seed: int = 0) -> 'Mosaics':
        """Reads the vectors of the real pages, an array of [T, 128] each."""
        with np.load(file) as arrays:
            pages = [arrays[name].astype(np.float32) for name in sorted(arrays.files)]
        lengths = sorted({len(page) for page in pages})
        return cls({n: np.stack([p for p in pages if len(p) == n]) for n in lengths}, seed, tiles)

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

    def query(self, number: int, count: int, tokens: int = 20, noise: float = 1.0
              ) -> tuple[np.ndarray, int]:
        """Returns a query [tokens, 128] made of tokens of one of `count` pages, and which.

        Noise of norm 1 leaves a product of 0.7 with the page's token, as real queries have.
        """
        rng = np.random.default_rng([self.seed, 1, number])
        target = int(rng.integers(count))
        page = self.page(target)
        chosen = rng.choice(len(page) - SUFFIX - PREFIX, size=tokens, replace=False) + PREFIX
        return _noisy(page[chosen], noise, rng), target


def _noisy(tokens: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    step = rng.standard_normal(tokens.shape, np.float32) * np.float32(
        noise / np.sqrt(tokens.shape[1]))
    tokens = tokens + step
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


def write_corpus(mosaics: Mosaics, pages: int, queries: int, folder: Path) -> None:
    """Writes tokens.npy (float16), offsets.npy, queries.npy and targets.npy; keeps old ones."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / 'targets.npy').is_file():
        return
    lengths = [len(mosaics.page(number)) for number in range(pages)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.lib.format.open_memmap(folder / 'tokens.npy', 'w+', np.float16,
                                       (int(offsets[-1]), 128))
    for number in range(pages):
        tokens[offsets[number]:offsets[number + 1]] = mosaics.page(number)
    tokens.flush()
    np.save(folder / 'offsets.npy', offsets)
    made = [mosaics.query(number, pages) for number in range(queries)]
    np.save(folder / 'queries.npy', np.stack([query for query, _ in made]))
    np.save(folder / 'targets.npy', np.array([target for _, target in made]))
