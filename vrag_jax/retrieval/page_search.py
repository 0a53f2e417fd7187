"""The page search interface, in this process or through a service."""

from collections.abc import Sequence
from typing import Any, Protocol

from vrag_jax.retrieval.filters import Filters
from vrag_jax.retrieval.hits import Hit


class PageSearch(Protocol):
    """Finds pages; safe to use from many threads."""

    def search(self, queries: Sequence[str], k: int, filters: Filters | None = None
               ) -> list[list[Hit]]:
        """Finds the best pages of each query, see `SearchEngine.search`."""


def filters_json(filters: Filters) -> dict[str, Any]:
    """Returns filters as JSON has them."""
    return {name: value if isinstance(value, str | int | float | bool) else list(value)
            for name, value in filters.items()}
