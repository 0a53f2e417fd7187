"""What makes vectors of pages and queries with a model that needs no fitting: the interface."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class PageContent:
    """What an embedder may look at of a page.

    Attributes:
      page_id: of the page.
      text: its text, '' where it has none.
      load_image: returns the page's image, upright RGB; called only by those that look.
      size: width and height of the image, in pixels.
    """

    page_id: str
    text: str
    load_image: Callable[[], Image.Image]
    size: tuple[int, int]


Grid = tuple[int, int, int]
"""Rows and columns of a page's image tokens, and how many tokens come before them."""


class Embedder(Protocol):
    """Makes unit vectors of pages and queries; a page answers a query if they are close.

    With one vector each, the score of a page is their product. With several it is MaxSim:
    the sum over the query's vectors of the largest product with any vector of the page.
    """

    @property
    def kind(self) -> str:
        """Name in files and configs."""

    @property
    def dims(self) -> int:
        """Dimensions of a vector."""

    @property
    def multi_vector(self) -> bool:
        """Whether pages have several vectors, to be compared by MaxSim."""

    @property
    def reads(self) -> Literal['text', 'image']:
        """What it looks at of a page."""

    @property
    def tokens_read(self) -> int:
        """Tokens of pages and queries since it was loaded, for reports of progress."""

    @property
    def fingerprint(self) -> str:
        """Digest of weights and settings: equal if and only if vectors can be compared."""

    def embed_pages(self, pages: Sequence[PageContent]) -> list[np.ndarray]:
        """Returns `[T, dims]` float32 unit rows of each page; T is 1 for single vectors."""

    def embed_queries(self, queries: Sequence[str]) -> list[np.ndarray]:
        """Returns `[T, dims]` float32 unit rows of each query; T is 1 for single vectors.

        A query that the model cannot read, and so finds nothing, is all zeros.
        """

    def input_digest(self, page: PageContent) -> str:
        """Returns a digest of a page as the model sees it: equal pages have equal vectors."""

    def page_grids(self, pages: Sequence[PageContent]) -> list[Grid]:
        """Returns where among each page's vectors those of its image lie; loads no image.

        Raises:
          ValueError: if they are no vectors of an image's tokens.
        """
