"""A small store of pages whose images are single colours, and a mark of what ScaNN is for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.retrieval.single_vector import scann_searcher

# Of what is quantised: exact search takes its place where ScaNN is missing.
needs_scann = pytest.mark.skipif(bool(scann_searcher.MISSING), reason=scann_searcher.MISSING)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[[Sequence[str | None]], PageStore]:
    """Writes one 40x30 page a text and opens the store; ids are p1, p2, ..."""

    def make(texts: Sequence[str | None]) -> PageStore:
        folder = tmp_path / f'store{len(list(tmp_path.iterdir()))}'
        folder.mkdir()
        pages = []
        for number, text in enumerate(texts, start=1):
            Image.new('RGB', (40, 30), (number, 0, 0)).save(folder / f'{number}.png')
            pages.append(Page(f'p{number}', 'doc', number, f'{number}.png', 40, 30, text))
        PageStore.write(folder / 'pages.jsonl', pages)
        return PageStore.open(folder / 'pages.jsonl')

    return make
