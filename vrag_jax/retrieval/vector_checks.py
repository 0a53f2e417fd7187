"""Checks of page vectors before they are indexed: shape, finite numbers, sameness."""

import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

_DECIMALS = 4  # Numbers that agree to so many are the same: embedders compute in bfloat16.
_LISTED = 10  # Groups in a message, and ids of a group.


class SharedVectors:
    """Finds pages that differ, but have the same vectors: no search can tell them apart.

    A few such pages, blank ones for instance, are nothing to worry about. An embedder that does
    not look at its input, or looks at the same one again and again, makes many.

    Args:
      total: pages that will be added; at most so many are different. More than half of them with
        the vectors of another one before them are an error.
    """

    def __init__(self, total: int):
        self._total = total  # Of different pages, as far as is known.
        self._first: dict[str, tuple[str, Callable[[], str]]] = {}
        # By their vectors, ids of the pages that share them, by what was embedded of these.
        self._groups: dict[str, dict[str, str]] = {}
        self._count = 0

    def add(self, page_id: str, vectors: str, content: Callable[[], str]) -> None:
        """Adds a page.

        Args:
          page_id: of the page.
          vectors: `digest_of` its rows.
          content: returns what they were made from, or a digest of it; pages of the same
            content rightly have the same vectors. Is called only where vectors are shared.

        Raises:
          ValueError: if there are too many already, whatever comes; it names two pages.
        """
        first_id, first_content = self._first.setdefault(vectors, (page_id, content))
        if first_id == page_id:
            return
        if vectors not in self._groups:
            self._groups[vectors] = {first_content(): first_id}
        if self._groups[vectors].setdefault(content(), page_id) == page_id:
            self._count += 1
        else:
            self._total -= 1
        self._check()

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the ids of pages that share their vectors, a group a vector, in order.

        Raises:
          ValueError: if there are too many; it names two pages.
        """
        self._check()
        return [tuple(self._groups[vectors].values()) for vectors in self._first
                if len(self._groups.get(vectors, ())) > 1]

    def _check(self) -> None:
        if 2 * self._count > self._total:
            one, other, *_ = next(
                group for group in self._groups.values() if len(group) > 1).values()
            raise ValueError(f'{self._count} or more of {self._total} pages of different content '
                             f'have the vectors of another one, e.g. {one!r} and {other!r}')


def digest_of(rows: np.ndarray) -> str:
    """Returns a digest of a page's vectors [T, dims], equal if they agree to four decimals."""
    # Adding 0 makes -0.0 0.0, which has other bytes.
    rounded = np.asarray(rows, np.float32).round(_DECIMALS) + np.float32(0)
    return hashlib.blake2b(rounded.tobytes(), digest_size=16).hexdigest()


def tell_groups(groups: Sequence[Sequence[str]]) -> str:
    """Returns groups of page ids as a message lists them: the first, and how many more."""
    told = [', '.join(group[:_LISTED]) + (f' and {len(group) - _LISTED} more pages'
                                          if len(group) > _LISTED else '')
            for group in groups[:_LISTED]]
    if len(groups) > _LISTED:
        told.append(f'and {len(groups) - _LISTED} more groups')
    return '; '.join(told)


def shared_vectors(vectors: np.ndarray, ids: Sequence[str], contents: Sequence[str]
                   ) -> list[tuple[str, ...]]:
    """Returns the groups of pages that no search can tell apart, one page of each content.

    Args:
      vectors: [N, D] float, one a page.
      ids: of the pages.
      contents: of each page, what its vector was made from. Pages of the same content rightly have
        the same vector.

    Raises:
      ValueError: if more than half of the contents have the vector of another one.
    """
    first: dict[str, str] = {}  # The first page of each content.
    shared = SharedVectors(len(set(contents)))
    for page_id, content, row in zip(ids, contents, vectors, strict=True):
        if first.setdefault(content, page_id) == page_id:
            shared.add(page_id, digest_of(row[None]), functools.partial(str, content))
    return shared.groups()


def check_rows(vectors: np.ndarray | None, ids: tuple[str, ...]) -> None:
    """Raises a ValueError unless ids are unique and vectors [N, D], if given, N and finite."""
    if vectors is not None and len(ids) != len(vectors):
        raise ValueError(f'{len(ids)} ids for {len(vectors)} vectors')
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise ValueError(f'id {twice!r} stands twice')
    if vectors is not None:
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            first = ids[int(np.argmax(bad))]
            raise ValueError(f'the vector of {first!r} is not finite ({bad.sum()} of '
                             f'{len(ids)} vectors)')
