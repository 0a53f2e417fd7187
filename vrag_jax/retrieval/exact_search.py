"""Exact search of few vectors, and how much of it an approximate search finds."""

from collections.abc import Callable, Sequence

import numpy as np

_DIGITS = 6  # Scores that agree to so many decimals are equal.
_SPARE = 6  # Rows looked at beyond those wanted, among which equal scores may lie.
_ROWS = 16_384  # Vectors that are compared with all queries at a time.


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
    scores = queries @ vectors.T

    def most(row: np.ndarray, count: int) -> np.ndarray:
        return np.argpartition(-row, count - 1)[:count]

    return [best_rows(vectors, query, most(row, min(k + _SPARE, len(vectors))), k,
                      lambda _, count, row=row: most(row, count))  # type: ignore[misc]
            for query, row in zip(queries, scores, strict=True)]


def recall_of(vectors: np.ndarray, queries: np.ndarray, found: Sequence[np.ndarray],
              k: int) -> float:
    """Returns the mean share of the exact best k of each query that are among the rows found."""
    k = min(k, len(vectors))
    best = np.full((len(queries), 0), 0, np.int64)
    scores = np.zeros((len(queries), 0), np.float32)
    for start in range(0, len(vectors), _ROWS):
        part = queries @ vectors[start:start + _ROWS].T
        best = np.concatenate([best, np.broadcast_to(
            np.arange(start, start + part.shape[1]), part.shape)], axis=1)
        scores = np.concatenate([scores, part], axis=1)
        order = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(best, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
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
