"""Page recall within documents, as MMDocIR measures it, and how much text evidence has.

For each question the pages of its own document alone are searched. Recall@k is the share of its
evidence pages among the first k, averaged over the questions of a domain, and then over the
domains (Dong et al. 2025, arXiv 2501.08828, `metric_eval.py` of its repository).
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from vrag_jax.corpus.pages import PageStore
from vrag_jax.corpus.words import Word, page_words
from vrag_jax.retrieval.lexical.terms import split_terms
from vrag_jax.retrieval.page_search import PageSearch
from vrag_jax.rewards.retrieval import recall

KS = (1, 3, 5)


@dataclasses.dataclass(frozen=True)
class Box:
    """Where evidence stands: on a page of the store, in shares of its width and height."""

    page_id: str
    left: float
    top: float
    right: float
    bottom: float


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A question about a document, and where its answer stands.

    Attributes:
      query: the question.
      document: its document, as the store names it.
      domain: of the document.
      types: what the evidence is: 'Table', 'Chart', ...
      page_ids: pages of the evidence.
      boxes: of the evidence.
    """

    query: str
    document: str
    domain: str
    types: tuple[str, ...]
    page_ids: tuple[str, ...]
    boxes: tuple[Box, ...]


def load_evidence(file: Path, store: PageStore) -> list[Evidence]:
    """Reads `evidence.json`.

    Raises:
      ValueError: if the store does not hold a page; names question and page.
    """
    found = []
    for record in json.loads(file.read_text('utf-8')):
        document = PurePath(record['doc_id']).stem
        for question in record['questions']:
            def page_id(number: int, query: str = question['question'],
                        document: str = document) -> str:
                page = store.find(document, number)
                if page is None:
                    raise ValueError(f'{file}: {document}: no page {number} for {query!r}')
                return page

            boxes = []
            for box in question['boxes']:
                (width, height), (left, top, right, bottom) = box['page_size'], box['bbox']
                boxes.append(Box(page_id(box['page']), left / width, top / height,
                                 right / width, bottom / height))
            found.append(Evidence(
                question['question'], document, record['domain'], _types(question['type']),
                tuple(dict.fromkeys(map(page_id, question['pages']))), tuple(boxes)))
    return found


def page_recall(engine: PageSearch, evidence: Iterable[Evidence], ks: Sequence[int] = KS
                ) -> dict[str, dict[str, float]]:
    """Searches each question's own document.

    Returns:
      `recall@k` of each domain, of 'macro', the mean over the domains, and of 'micro', that
      over the questions; and in each the number of its 'questions'.
    """
    by_document: dict[str, list[Evidence]] = defaultdict(list)
    for item in evidence:
        by_document[item.document].append(item)
    shares: dict[str, list[list[float]]] = defaultdict(list)
    for document, items in by_document.items():
        hits = engine.search([item.query for item in items], max(ks), {'document': document})
        for item, found in zip(items, hits, strict=True):
            ids = [hit.page_id for hit in found]
            shares[item.domain].append([recall(ids[:k], item.page_ids) for k in ks])
    means = {domain: np.mean(shares[domain], axis=0) for domain in sorted(shares)}
    every = [row for rows in shares.values() for row in rows]
    means |= {'macro': np.mean(list(means.values()), axis=0), 'micro': np.mean(every, axis=0)}
    counts = {domain: len(rows) for domain, rows in shares.items()}
    return {name: {f'recall@{k}': float(value) for k, value in zip(ks, values, strict=True)}
            | {'questions': counts.get(name, len(every))} for name, values in means.items()}


def best_possible(evidence: Iterable[Evidence], k: int) -> float:
    """Returns the greatest macro recall@k: questions with several pages cannot have all first."""
    shares: dict[str, list[float]] = defaultdict(list)
    for item in evidence:
        shares[item.domain].append(min(k / len(item.page_ids), 1))
    return float(np.mean([np.mean(values) for values in shares.values()]))


def text_coverage(evidence: Iterable[Evidence], store: PageStore,
                  read: Callable[[str, Box], str] | None = None) -> dict[str, dict[str, float]]:
    """Measures how much text pages have where evidence stands, by type of evidence.

    Args:
      evidence: with boxes; evidence of two types counts for both.
      store: the pages, ingested, with their word boxes.
      read: returns what OCR reads in a box of a page, to be compared with the page's text; None
        compares nothing.

    Returns:
      Of each type, and of 'all': the number of 'boxes'; 'with_text', the share of them
      that words of the page's text layer or OCR stand in; 'words', their median number; with
      `read`, 'words_known', the share of the words seen in a box that are in the page's text
      (mean over the boxes with any), and 'boxes_read', the number of these boxes.
    """
    words: dict[str, Sequence[Word]] = {}
    rows: dict[str, list[tuple[int, float | None]]] = defaultdict(list)
    for item in evidence:
        for box in item.boxes:
            if box.page_id not in words:
                words[box.page_id] = page_words(store, box.page_id) or ()
            page = store[box.page_id]
            inside = sum(_inside(word, box, page.width, page.height)
                         for word in words[box.page_id])
            known = None
            if read is not None:
                seen = split_terms(read(box.page_id, box)).words
                of_page = set(split_terms(page.text or '').words)
                known = float(np.mean([word in of_page for word in seen])) if seen else None
            for kind in (*item.types, 'all'):
                rows[kind].append((inside, known))
    return {kind: _coverage(rows[kind], read is not None) for kind in sorted(rows)}


def _coverage(rows: Sequence[tuple[int, float | None]], compared: bool) -> dict[str, float]:
    counts = np.array([count for count, _ in rows])
    found: dict[str, float] = {'boxes': len(rows), 'with_text': float(np.mean(counts > 0)),
                               'words': float(np.median(counts))}
    if compared:
        known = [share for _, share in rows if share is not None]
        found |= {'words_known': float(np.mean(known)) if known else 0.0,
                  'boxes_read': len(known)}
    return found


def _inside(word: Word, box: Box, width: int, height: int) -> bool:
    left, top, right, bottom = word.box
    x, y = (left + right) / 2 / width, (top + bottom) / 2 / height
    return box.left <= x <= box.right and box.top <= y <= box.bottom


def _types(text: str) -> tuple[str, ...]:
    """Returns the types of "['Chart', 'Table']"; ('unknown',) of an empty list."""
    return tuple(part.strip(" '\"") for part in text.strip('[]').split(',')
                 if part.strip(" '\"")) or ('unknown',)


def flat(figures: Mapping[str, float]) -> dict[str, float]:
    """Returns figures under names that are fields of a record, rounded."""
    return {name.replace('@', '_at_'): round(value, 4) for name, value in figures.items()}
