"""Words of a page and where they stand: one sidecar file a document."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from vrag_jax.corpus.pages import PageStore

WORDS = 'words.jsonl'


@dataclasses.dataclass(frozen=True)
class Word:
    """A run of characters without white space, and its box.

    Attributes:
      text: of the word.
      box: (x1, y1, x2, y2) in pixels of the page's image, right and lower edge excluded.
    """

    text: str
    box: tuple[int, int, int, int]


def covered(words: Sequence[Word]) -> list[tuple[int, int, int, int]]:
    """Returns the boxes whose ink is that of their words: not those of watermarks.

    The box of a word that runs across a page is nearly as high as wide, and holds other text.
    """
    boxes = []
    for word in words:
        x1, y1, x2, y2 = word.box
        sides = sorted((x2 - x1, y2 - y1))
        if len(word.text) < 4 or sides[1] >= 0.3 * len(word.text) * sides[0]:
            boxes.append(word.box)
    return boxes


def write_words(file: Path, pages: Iterable[tuple[int, Sequence[Word]]]) -> None:
    """Writes JSON lines, one a page: its number and `[text, x1, y1, x2, y2]` of each word."""
    lines = [json.dumps({'page': page, 'words': [[w.text, *w.box] for w in words]},
                        ensure_ascii=False, separators=(',', ':')) for page, words in pages]
    file.write_text(''.join(f'{line}\n' for line in lines), 'utf-8')


def read_words(file: Path) -> dict[int, list[Word]]:
    """Reads what `write_words` has written, {} if there is no such file."""
    if not file.is_file():
        return {}
    pages = [json.loads(line) for line in file.read_text('utf-8').split('\n') if line]
    return {page['page']: [Word(text, (x1, y1, x2, y2)) for text, x1, y1, x2, y2 in page['words']]
            for page in pages}


def page_words(store: PageStore, page_id: str) -> list[Word] | None:
    """Returns the words of a page in reading order, None where no boxes are known.

    Args:
      store: pages that `ingest` has made.
      page_id: of the page.

    Raises:
      KeyError: for an unknown page.
    """
    page = store[page_id]
    file = store.path(page_id).parent / WORDS
    if not file.is_file():
        return None
    # The page's number comes first in its line: others need not be parsed.
    start = f'{{"page":{page.page},'
    for line in file.read_text('utf-8').split('\n'):
        if line.startswith(start):
            return [Word(text, (x1, y1, x2, y2))
                    for text, x1, y1, x2, y2 in json.loads(line)['words']]
    return None
