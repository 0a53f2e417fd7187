"""Checks of page vectors before they are indexed: shape, finite numbers, sameness."""

import hashlib
from collections.abc import Sequence

import numpy as np

_DECIMALS = 4  # Numbers that agree to so many are the same: embedders compute in bfloat16.


def check_vectors(vectors: np.ndarray, ids: Sequence[str], contents: Sequence[str], dims: int,
                  offsets: np.ndarray | None = None, most_shared: float = 0.5
                  ) -> list[tuple[str, ...]]:
    """Refuses vectors that cannot be right, and finds pages that no search can tell apart.

    Args:
      vectors: [R, dims] float, may be memory-mapped: one a page or, with `offsets`, several.
      ids: of the N pages.
      contents: of each page, what its vectors were made from, or a digest of it: a text, an
        image. Pages of the same content rightly have the same vectors.
      dims: what the second dimension has to be.
      offsets: [N + 1] int, the rows of page i are `vectors[offsets[i]:offsets[i + 1]]`.
      most_shared: fraction of the different contents that may have the vectors of another one
        before them; more is an error: an embedder that gives every page the same.

    Returns:
      Ids of pages that have the same vectors though their contents differ, a group a vector,
      in order; one page of each content.

    Raises:
      ValueError: for a wrong shape, a page without a vector, a number that is not finite, or
        too many of the same vectors; the message names a page.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dims:
        raise ValueError(f'vectors: expected [N, {dims}], got {vectors.shape}')
    if len(ids) != len(contents):
        raise ValueError(f'{len(ids)} ids for {len(contents)} contents')
    if offsets is None:
        offsets = np.arange(len(ids) + 1)
    if len(offsets) != len(ids) + 1 or offsets[0] != 0 or offsets[-1] != len(vectors):
        raise ValueError(f'vectors: {len(vectors)} rows are not those of {len(ids)} pages')
    first: dict[bytes, str] = {}  # The first page of each content.
    pages: dict[bytes, list[str]] = {}  # Such pages by their vectors.
    for page_id, content, start, stop in zip(ids, contents, offsets[:-1], offsets[1:],
                                             strict=True):
        rows = np.asarray(vectors[start:stop], np.float32)
        if not len(rows):
            raise ValueError(f'page {page_id!r} has no vector')
        if not np.isfinite(rows).all():
            raise ValueError(f'the vectors of page {page_id!r} are not finite')
        digest = hashlib.blake2b(content.encode('utf-8', 'surrogatepass')).digest()
        if first.setdefault(digest, page_id) == page_id:
            # Adding 0 makes -0.0 0.0, which has other bytes.
            rounded = rows.round(_DECIMALS) + np.float32(0)
            pages.setdefault(hashlib.blake2b(rounded.tobytes()).digest(), []).append(page_id)
    shared = [tuple(group) for group in pages.values() if len(group) > 1]
    count = sum(len(group) - 1 for group in shared)
    if count > most_shared * len(first):
        raise ValueError(f'{count} of {len(first)} pages of different content have the vectors of '
                         f'another one, e.g. {shared[0][0]!r} and {shared[0][1]!r}')
    return shared
