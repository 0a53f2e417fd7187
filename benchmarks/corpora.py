"""Corpora and queries of benchmarks of search, made of the text of real documents."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pypdfium2
from PIL import Image

from vrag_jax.corpus.pages import Page, PageStore

_PARAGRAPHS, _WORDS = 4, 60  # Of a mixed page, as many as on a page of a report.
_LINES = 8  # At most, of a synthetic page, that one real page gives together.


def documents_texts(documents: Path) -> dict[str, list[str]]:
    """Returns the text layers of the pages of all PDFs, by name of the document."""
    found: dict[str, list[str]] = {}
    for file in sorted(documents.glob('*.pdf')):
        document = pypdfium2.PdfDocument(file)
        found[file.stem] = [page.get_textpage().get_text_range() for page in document]
        document.close()
    return found


def mixed_texts(texts: Iterable[str], count: int) -> list[str]:
    """Returns texts of pieces of 60 words, drawn from all of the texts."""
    pieces, rng = [], random.Random(0)
    for words in map(str.split, texts):
        pieces += [' '.join(words[i : i + _WORDS]) for i in range(0, len(words), _WORDS)]
    return ['\n'.join(rng.choices(pieces, k=_PARAGRAPHS)) for _ in range(count)]


def write_pages(folder: Path, texts: Mapping[str, Sequence[str]]) -> Path:
    """Writes the manifest of pages of given texts, by name of the document; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (28, 28), 'white').save(folder / 'page.png')
    PageStore.write(folder / 'pages.jsonl', (
        Page(f'{name}_{n}', name, n, 'page.png', 28, 28, text)
        for name, pages in texts.items() for n, text in enumerate(pages, start=1)))
    return folder / 'pages.jsonl'


def mixed_queries(questions: Sequence[str], count: int, seed: int) -> list[str]:
    """Returns different queries: the first half of one question and the second of another."""
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        first, second = (rng.choice(questions) for _ in range(2))
        found[f'{first[: len(first) // 2]} {second[len(second) // 2 :]}'] = None
    return list(found)


def synthetic_texts(pages: Sequence[str], count: int, seed: int = 0) -> Iterator[str]:
    """Yields texts of pages, each as long as one of `pages`, of runs of their lines."""
    rng = random.Random(seed)
    lines = [[line for line in page.splitlines() if line.strip()] for page in pages]
    filled = [page for page in lines if page]
    sizes = [len(page.split()) for page in pages]
    for _ in range(count):
        wanted, found = rng.choice(sizes), list[str]()
        words = 0
        while words < wanted:
            page = rng.choice(filled)
            start = rng.randrange(len(page))
            for line in page[start:start + rng.randint(1, _LINES)]:
                found.append(line)
                words += len(line.split())
        yield '\n'.join(found)
