"""Filters of a search: which pages have the values that are asked for."""

from collections.abc import Mapping, Sequence

import numpy as np

from vrag_jax.corpus.names import nfc
from vrag_jax.corpus.pages import Page

Value = str | int | float | bool
Filters = Mapping[str, Value | Sequence[Value]]
Wanted = tuple[tuple[str, frozenset[tuple[bool, Value]]], ...]


def normalised(filters: Filters | None) -> Wanted:
    """Returns filters in a form that is equal for equal filters, and hashable.

    Raises:
      ValueError: for a value of no type that a field can have.
    """
    wanted = []
    for name, values in sorted((filters or {}).items()):
        if isinstance(values, str | int | float):
            values = (values,)
        if not isinstance(values, Sequence) or not all(
                isinstance(value, str | int | float) for value in values):
            raise ValueError(f'filter {name!r}: expected strings, numbers or booleans, got '
                             f'{values!r}')
        wanted.append((nfc(name), frozenset(map(_key, values))))
    return tuple(wanted)


class UnknownFieldError(ValueError):
    """A filter on a field that no page has."""


class PageFields:
    """Finds pages by the values of their fields.

    Args:
      pages: in the order of the masks.
    """

    def __init__(self, pages: Sequence[Page]):
        self._count = len(pages)
        self._rows: dict[str, dict[tuple[bool, Value], list[int]]] = {}
        for row, page in enumerate(pages):
            fields: dict[str, Value] = {
                'page_id': page.page_id, 'document': page.document, 'page': page.page}
            for name, value in [*fields.items(), *page.metadata.items()]:
                self._rows.setdefault(nfc(name), {}).setdefault(_key(value), []).append(row)

    def check(self, wanted: Wanted) -> None:
        """Raises an `UnknownFieldError` if no page has a field: its name is wrong."""
        for name, _ in wanted:
            if name not in self._rows:
                raise UnknownFieldError(
                    f'filter {name!r}: no page has such a field; there are {sorted(self._rows)}')

    def matching(self, wanted: Wanted) -> np.ndarray | None:
        """Returns which pages match, bool [pages]; None if there is no filter."""
        if not wanted:
            return None
        self.check(wanted)
        mask = np.ones(self._count, bool)
        for name, values in wanted:
            matches = np.zeros(self._count, bool)
            for value in values:
                matches[self._rows[name].get(value, [])] = True
            mask &= matches
        return mask


def _key(value: Value) -> tuple[bool, Value]:
    """Tells True from 1, which are equal in Python, and no form of Unicode from another."""
    return isinstance(value, bool), nfc(value) if isinstance(value, str) else value
