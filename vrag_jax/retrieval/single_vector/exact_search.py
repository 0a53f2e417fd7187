"""Exact search of vectors, and how much of it an approximate search finds."""

from collections.abc import Callable, Sequence

import numpy as np

_DIGITS = 6  # Scores that agree to so many decimals are equal.
_SPARE = 6  # Rows looked at beyond those wanted, among which equal scores may lie.
_ROWS = 16_384  # Vectors that are compared with all queries at a time.


class ExactSearcher:
    """Searches all of vectors [N, D] float32, N > 0, with the methods of a ScaNN searcher."""

    def __init__(self, vectors: np.ndarray):
        self._vectors = vectors

    def size(self) -> int:
        return len(self._vectors)

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows int64 [k] and scores float32 [k] for a query [D], best first."""
        rows, scores = self.search_batched(query[None], k)
        return rows[0], scores[0]

    def search_batched(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows int64 [Q, k] and scores float32 [Q, k] for queries [Q, D], best first.

        Args:
          queries: [Q, D] float32.
          k: rows wanted, at most as many as there are.
        """
        best = np.zeros((len(queries), 0), np.int64)
        scores = np.zeros((len(queries), 0), np.float32)
        for start in range(0, len(self._vectors), _ROWS):
            part = queries @ self._vectors[start:start + _ROWS].T
            best = np.concatenate([best, np.broadcast_to(
                np.arange(start, start + part.shape[1]), part.shape)], axis=1)
            scores = np.concatenate([scores, part], axis=1)
            if k < scores.shape[1]:
                kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
                best = np.take_along_axis(best, kept, axis=1)
                scores = np.take_along_axis(scores, kept, axis=1)
        order = np.argsort(-scores, axis=1, kind='stable')
        return np.take_along_axis(best, order, axis=1), np.take_along_axis(scores, order, axis=1)


def best_rows(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, k: int,
              more: Callable[[np.ndarray, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best k of the rows found, equal ones in ascending order.

    Args:
      vectors: [N, D].
      query: [D].
      rows: found for it, k or more.
      k: rows wanted.
      more: finds so many rows for a query; is asked while as many as were found are
        equal to the last one wanted.

    Returns:
      Rows and scores float32.
    """
    order, exact = _order(vectors, query, rows)
    while len(rows) < len(vectors) and exact[k - 1] - exact[-1] < 10.0**-_DIGITS:
        rows = more(query, min(2 * len(rows), len(vectors)))
        order, exact = _order(vectors, query, rows)
    return order[:k], exact[:k].astype(np.float32)


def exact_among(vectors: np.ndarray, queries: np.ndarray, k: int
                ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns rows and scores of the best k of vectors [N, D] for each of queries [Q, D]."""
    k = min(k, len(vectors))
    if not k:
        return [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
    searcher = ExactSearcher(vectors)
    found, _ = searcher.search_batched(queries, min(k + _SPARE, len(vectors)))

    def more(query: np.ndarray, count: int) -> np.ndarray:
        return searcher.search(query, count)[0]

    return [best_rows(vectors, query, rows, k, more)
            for query, rows in zip(queries, found, strict=True)]


def recall_of(vectors: np.ndarray, queries: np.ndarray, found: Sequence[np.ndarray],
              k: int) -> float:
    """Returns the mean share of the exact best k of each query that are among the rows found."""
    k = min(k, len(vectors))
    best, _ = ExactSearcher(vectors).search_batched(queries, k)
    shares = [len(np.intersect1d(a, b)) / k for a, b in zip(best, found, strict=True)]
    return float(np.mean(shares))


def exact_scores(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the inner products of a query [D] and rows of vectors [N, D], in float64."""
    return vectors[rows].astype(np.float64) @ query.astype(np.float64)


def _order(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows, best first and equal ones ascending, and their scores as float64."""
    rows = np.sort(rows)
    scores = exact_scores(vectors, query, rows)
    best = np.argsort(-scores.round(_DIGITS), kind='stable')
    return rows[best], scores[best]
