"""What makes vectors of pages and queries: the interface, and how one is read back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder


class PageEncoder(Protocol):
    """Makes unit vectors of texts so that a page answers a query if their product is large."""

    kind: str
    """Name of the class in files."""

    @property
    def fingerprint(self) -> str:
        """Names the fitted state: equal if and only if vectors can be compared."""

    def fit(self, texts: Sequence[str]) -> None:
        """Learns from the texts of a corpus's pages; must come first."""

    def encode_pages(self, texts: Sequence[str]) -> np.ndarray:
        """Returns [N, D] float32 unit rows."""

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Returns [N, D] float32 unit rows; a query that nothing can match is all zeros."""

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Writes the fitted state into a folder; returns JSON fields to read it by."""


def read_encoder(kind: str, folder: Path, fields: dict[str, Any]) -> PageEncoder:
    """Reads what an encoder of that kind wrote with `write_files`.

    Raises:
      ArtifactError: for an unknown kind or wrong files.
    """
    if kind != NgramEncoder.kind:
        raise ArtifactError(f'{folder}: encoder {kind!r} is unknown; there is '
                            f'{NgramEncoder.kind!r}')
    return NgramEncoder.from_files(folder, fields)
