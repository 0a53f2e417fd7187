"""Exact search by words among many pages: BM25 of terms, over inverted lists."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.lexical.postings import Postings, read_array
from vrag_jax.retrieval.lexical.term_counts import GROUPS, check_version, count_pages, count_query
from vrag_jax.retrieval.lexical.terms import VERSION

_COMPACT = 0.3  # Share of deleted pages among all from which the lists are written anew.
_BLOCK = 2048  # Texts whose terms are counted at a time.
_PIECES = GROUPS.index('pieces')


@dataclasses.dataclass(frozen=True)
class Weighting:
    """What a term weighs (Robertson and Zaragoza 2009).

    A page's score is the sum over the query's terms of group weight * count in the query * idf *
    tf (k1 + 1) / (tf + k1 (1 - b + b * length / mean length)), the lengths being those of the
    page in terms of that group.

    Attributes:
      groups: weight of each of `term_counts.GROUPS`; terms of one that weighs nothing are not
        kept.
      k1, b: saturation and length normalisation.
      piece_share, few_pages: pieces that a greater share of the pages has, and more pages than
        `few_pages`, weigh nothing.
      sublinear: the count of a term in a query is 1 + log(count).
      buckets: of hashes, of each group.
    """

    groups: tuple[float, ...]
    k1: float
    b: float
    piece_share: float = 1.0
    few_pages: int = 64
    sublinear: bool = True
    buckets: int = 1 << 28


class InvertedLists:
    """Pages in inverted lists, in parts: one they were built from, others added since.

    Nothing that is stored depends on other pages: weights are computed when a query is asked, in
    float64. So pages are added as a part of their own, deleted ones are left out, and what is
    found is what lists built anew would find, to the last bit. Searches are safe from many
    threads.

    Args:
      weighting: of the terms.
      parts: of pages.
      rows: int64 [pages]: of each page in order its number among all pages of all parts.
      gone: of each part how many deleted pages have each term, int64 [T]; None for none.
    """

    def __init__(self, weighting: Weighting, parts: Sequence[Postings], rows: np.ndarray,
                 gone: Sequence[np.ndarray | None] | None = None):
        self.weighting = weighting
        self._parts = tuple(parts)
        self._rows = rows
        self._gone = tuple(gone) if gone is not None else (None,) * len(self._parts)
        self._firsts = np.cumsum([0, *map(len, self._parts)])  # Number of each part's first page.
        self._in_order = len(rows) == self._firsts[-1] and bool(
            (rows == np.arange(len(rows))).all())
        lengths = np.concatenate([part.lengths for part in self._parts], axis=1)
        means = np.maximum(lengths[:, rows].sum(axis=1) / max(len(rows), 1), 1e-9)
        # [groups, all pages]; a row that is not contiguous would be copied for every term.
        self._slopes = np.ascontiguousarray(weighting.k1 * (
            1 - weighting.b + weighting.b * lengths / means[:, None]))

    @classmethod
    def build(cls, texts: Sequence[str], weighting: Weighting,
              scratch: Path | None = None) -> 'InvertedLists':
        """Returns the lists of pages' texts.

        Args:
          texts: of the pages, one or more.
          weighting: of the terms.
          scratch: where files are made in which the lists lie; None keeps them in memory.
        """
        return cls(weighting, [_postings(texts, weighting, scratch)], np.arange(len(texts)))

    def __len__(self) -> int:
        """Pages."""
        return len(self._rows)

    @property
    def digests(self) -> np.ndarray:
        """uint8 [pages, 16], equal for pages that no query tells apart."""
        return np.concatenate([part.digests for part in self._parts])[self._rows]

    @property
    def terms(self) -> int:
        """Terms on all pages, with repetitions."""
        return int(sum(part.lengths.sum() for part in self._parts))

    def search(self, query: str, k: int, allowed: np.ndarray | None = None
               ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best pages of a query, which share a term with it.

        Args:
          query: a text.
          k: pages at most.
          allowed: bool [pages]: which may be found; None for all.

        Returns:
          Numbers of pages, best first and those of equal score in order, and scores float32.
        """
        totals = self._totals(query)
        if not self._in_order:
            totals = totals[self._rows]
        scores = totals.astype(np.float32)
        if allowed is not None:
            scores[~allowed] = 0
        if k < len(scores):
            least = np.partition(scores, len(scores) - k)[len(scores) - k]
            found = np.flatnonzero(scores >= max(least, np.finfo(np.float32).tiny))
        else:
            found = np.flatnonzero(scores > 0)
        found = found[np.argsort(-scores[found], kind='stable')[:k]]
        return found, scores[found]

    def _totals(self, query: str) -> np.ndarray:
        """Scores of all pages of all parts, float64."""
        weighting = self.weighting
        terms, counts = count_query(query, weighting.buckets)
        groups = terms // weighting.buckets
        factors = np.array(weighting.groups)[groups] * (
            1 + np.log(counts) if weighting.sublinear else counts)
        places, having = [], np.zeros(len(terms), np.int64)
        for part, gone in zip(self._parts, self._gone, strict=True):
            place = np.minimum(np.searchsorted(part.terms, terms), max(len(part.terms) - 1, 0))
            known = part.terms[place] == terms if len(part.terms) else np.zeros(len(terms), bool)
            size = np.where(known, part.starts[place + 1] - part.starts[place], 0) if (
                len(part.terms)) else having * 0
            having += size if gone is None else size - np.where(known, gone[place], 0)
            places.append((place, known))
        pages = len(self)
        factors *= np.log1p((pages - having + 0.5) / (having + 0.5)) * (weighting.k1 + 1)
        factors[having == 0] = 0
        factors[(groups == _PIECES) & (having > max(
            weighting.piece_share * pages, weighting.few_pages))] = 0
        totals = np.zeros(int(self._firsts[-1]))
        for number, (part, (place, known)) in enumerate(zip(self._parts, places, strict=True)):
            first, last = self._firsts[number], self._firsts[number + 1]
            used = np.flatnonzero(known & (factors > 0))
            mine, slopes = totals[first:last], self._slopes[:, first:last]
            # Term by term, so that what is worked on stays in a core's cache; and in the same
            # order whatever else is in the lists, for sums are rounded.
            for group, factor, start, end in zip(
                    groups[used].tolist(), factors[used].tolist(),
                    part.starts[place[used]].tolist(), part.starts[place[used] + 1].tolist(),
                    strict=True):
                rows, counts = part.rows[start:end].astype(np.intp), part.counts[start:end]
                weights = slopes[group].take(rows, mode='clip')  # 'raise' would copy once more.
                weights += counts
                np.divide(counts, weights, out=weights)
                weights *= factor
                np.add.at(mine, rows, weights)
        return totals

    def updated(self, texts: Sequence[str], deleted: np.ndarray,
                scratch: Path | None = None) -> 'InvertedLists':
        """Returns lists without some pages and with others; these stay as they are.

        Args:
          texts: of the pages that come, after those that stay.
          deleted: bool [pages], which go.
          scratch: as in `build`.
        """
        rows, parts, gone = self._rows[~deleted], list(self._parts), list(self._gone)
        alive = np.zeros(int(self._firsts[-1]), bool)
        alive[rows] = True
        masks = [alive[low:high] for low, high in zip(
            self._firsts, self._firsts[1:], strict=False)]
        if deleted.any():
            fresh = np.zeros(len(alive), bool)
            fresh[self._rows[deleted]] = True
            for number, part in enumerate(parts):
                mask = fresh[self._firsts[number]:self._firsts[number + 1]]
                if mask.any():
                    before = gone[number]
                    gone[number] = part.having(mask) + (0 if before is None else before)
        if len(texts):
            rows = np.concatenate([rows, len(alive) + np.arange(len(texts))])
            parts.append(_postings(texts, self.weighting, scratch))
            masks.append(np.ones(len(texts), bool))
            gone.append(None)
        lists = InvertedLists(self.weighting, parts, rows, gone)
        sizes, first = [len(part) for part in parts], len(parts) - 1
        if sum(sizes) - len(rows) > _COMPACT * sum(sizes):
            return lists._merged(0, masks, scratch)
        # A part has more pages than the next: there are few, and a page is written anew only a
        # few times while others come.
        while len(texts) and first and sum(sizes[first:]) >= sizes[first - 1]:
            first -= 1
        return lists._merged(first, masks, scratch) if first < len(parts) - 1 else lists

    def _merged(self, first: int, masks: Sequence[np.ndarray],
                scratch: Path | None) -> 'InvertedLists':
        """Returns lists whose parts from `first` on are one, without deleted pages."""
        part = Postings.merged(self._parts[first:], masks[first:], scratch)
        start = int(self._firsts[first])
        numbers = np.cumsum(np.concatenate([np.zeros(0, bool), *masks[first:]])) - 1 + start
        rows = self._rows.copy()
        late = rows >= start
        rows[late] = numbers[rows[late] - start]
        return InvertedLists(self.weighting, [*self._parts[:first], part], rows,
                             [*self._gone[:first], None])

    def in_order(self, places: np.ndarray) -> 'InvertedLists':
        """Returns the same lists with pages in another order: int [pages], of each its place."""
        return InvertedLists(self.weighting, self._parts, self._rows[places], self._gone)

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes the lists into a folder; returns the fields to read them by."""
        np.save(folder / 'page_rows.npy', self._rows, allow_pickle=False)
        for number, (part, gone) in enumerate(zip(self._parts, self._gone, strict=True)):
            (folder / f'part-{number:03d}').mkdir()
            part.write_files(folder / f'part-{number:03d}')
            if gone is not None:
                np.save(folder / f'gone-{number:03d}.npy', gone, allow_pickle=False)
        return {'parts': len(self._parts), 'terms': VERSION,
                'gone': [gone is not None for gone in self._gone]}

    @classmethod
    def from_files(cls, folder: Path, fields: dict[str, Any],
                   weighting: Weighting) -> 'InvertedLists':
        """Maps what `write_files` wrote.

        Raises:
          ArtifactError: for files that do not belong together, or terms of another vocabulary.
        """
        check_version(folder, fields)
        try:
            parts = [Postings.read(folder / f'part-{number:03d}')
                     for number in range(fields['parts'])]
            gone = [read_array(folder / f'gone-{number:03d}.npy', [np.int64]) if has else None
                    for number, has in enumerate(fields['gone'])]
            rows = np.array(read_array(folder / 'page_rows.npy', [np.int64]))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f'{folder}: inverted lists: {error!r}') from error
        total = sum(map(len, parts))
        if rows.ndim != 1 or len(np.unique(rows)) != len(rows) or (
                len(rows) and not 0 <= rows.min() <= rows.max() < total):
            raise ArtifactError(f'{folder}/page_rows.npy: expected different numbers of {total} '
                                'pages')
        if len(gone) != len(parts):
            raise ArtifactError(f'{folder}: {len(parts)} parts, but {len(gone)} marks')
        for number, (part, count) in enumerate(zip(parts, gone, strict=True)):
            if count is not None and count.shape != part.terms.shape:
                raise ArtifactError(f'{folder}/gone-{number:03d}.npy: expected '
                                    f'{len(part.terms)} numbers, got {list(count.shape)}')
        return cls(weighting, parts, rows, gone)


def _postings(texts: Sequence[str], weighting: Weighting, scratch: Path | None) -> Postings:
    """Returns the postings of pages' texts, of those groups that weigh something."""
    kept = [group for group, weight in zip(GROUPS, weighting.groups, strict=True) if weight]
    parts = [Postings.of(count_pages(texts[start:start + _BLOCK], weighting.buckets, kept),
                         weighting.buckets)
             for start in range(0, len(texts), _BLOCK)]
    if len(parts) == 1:
        return parts[0]
    return Postings.merged(parts, [np.ones(len(part), bool) for part in parts], scratch)
