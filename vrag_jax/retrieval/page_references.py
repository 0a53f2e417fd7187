"""Page numbers named in a query: 'the chart on page 14', 'slide three', '第3页'."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vrag_jax.corpus.pages import PageStore
from vrag_jax.retrieval.answer_forms import without_answer_form
from vrag_jax.retrieval.retriever import Hits, Retriever

DEPTH = 100  # Hits among which pages that are named come first, at least.
_CONSTANT = 20.0  # Of reciprocal ranks, as in a hybrid.
_GAIN = 1.5 / (_CONSTANT + 1)  # Of the named page of the first document: before any first hit.
_LONGEST_RANGE = 20  # 'pages 3 to 9' names seven pages, 'pages 1-300' none.

_WORDS = {word: number for number, word in enumerate(
    """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty""".split(), start=1)}
_ORDINALS = {word: number for number, word in enumerate(
    """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth
    thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth
    twentieth""".split(), start=1)}
_HAN = {character: number for number, character in enumerate('一二三四五六七八九', start=1)}

_PAGE = r'(?:pages?|slides?|pp?\.)'
# Answers that a question asks for in a form like ["Page 2"] name no page.
_EXAMPLE = re.compile(r'\[[^\]]*\]')
_NUMBERS = re.compile(
    rf'(?<![\w-])(?<!web )(?<!home ){_PAGE}\s*(?:no\.?|number|\#)?\s*\(?'
    r'(\d{1,5}(?:\s*\)?\s*(?:,\s*and|,|and|or|&|-|\u2013|to)\s*\d{1,5})*)(?![\w%]|\.\d)',
    re.IGNORECASE)
_SPELLED = re.compile(rf'(?<![\w-]){_PAGE}\s+({"|".join(_WORDS)})\b(?!-)', re.IGNORECASE)
_ORDINAL = re.compile(
    rf'(?<![\w-])({"|".join(_ORDINALS)}|\d{{1,4}}(?:st|nd|rd|th))\s+(?:cover\s+)?(?:page|slide)\b',
    re.IGNORECASE)
_PLACE_FROM_END = rf'(?:({"|".join(_ORDINALS)})[\s-]+(?:to[\s-]+)?(?:the[\s-]+)?)?'
_FROM_END = re.compile(rf'(?<![\w-]){_PLACE_FROM_END}(?:last|final)\s+(?:page|slide)\b',
                       re.IGNORECASE)
_AT_END = re.compile(rf'\b(?:page|slide)\s+at\s+the\s+{_PLACE_FROM_END}last\b', re.IGNORECASE)
_BEFORE_LAST = re.compile(r'\b(?:penultimate|last\s+but\s+one)\s+(?:page|slide)\b', re.IGNORECASE)
_COVER = re.compile(r'\b(?:(?:front\s+)?cover|front|title)\s+(?:page|slide)\b|\bon\s+the\s+cover\b',
                    re.IGNORECASE)
_HAN_PAGE = re.compile(r'第\s*(\d{1,5}|[一二三四五六七八九十百]{1,5})\s*[页頁]')
_HAN_LAST = re.compile(r'(?:最后|最後)\s*一?\s*[页頁]')
_HAN_COVER = re.compile(r'封面|首[页頁]')


class NamedPage(NamedTuple):
    """A page that a query names.

    Attributes:
      number: from 1; -1 is the last page, -2 the one before it.
      printed: whether the number may be the one that is printed on the page ('page 14'), not
        only its place in the document ('the second page', 'the cover').
    """

    number: int
    printed: bool


def named_pages(query: str) -> tuple[NamedPage, ...]:
    """Returns the pages that a query names, each once.

    Numbers of figures and tables, of web pages, and of pages in an example in brackets
    (`["Page 2"]`) are none.
    """
    text = _EXAMPLE.sub(' ', query)
    numbers = [number for match in _NUMBERS.finditer(text) for number in _listed(match[1])]
    numbers += [_WORDS[match[1].lower()] for match in _SPELLED.finditer(text)]
    numbers += [_han_number(match[1]) for match in _HAN_PAGE.finditer(text)]
    places = [_ordinal(match[1]) for match in _ORDINAL.finditer(text)]
    for pattern in (_FROM_END, _AT_END):
        places += [-_ordinal(match[1] or 'first') for match in pattern.finditer(text)]
    if _BEFORE_LAST.search(text):
        places.append(-2)
    if _HAN_LAST.search(text):
        places.append(-1)
    if _COVER.search(_ORDINAL.sub(' ', text)) or _HAN_COVER.search(text):
        places.append(1)
    named = [*(NamedPage(number, True) for number in numbers),
             *(NamedPage(place, False) for place in places)]
    return tuple(dict.fromkeys(page for page in named if page.number))


def printed_numbers(texts: Sequence[str]) -> list[frozenset[int]]:
    """Returns the page numbers that are printed on each page of a document.

    A number at the begin or end of one of a page's first or last lines is the page's, if
    those of neighbouring pages count on from it, by one, or by two on spreads; a spread has two.
    A page without one between two others has the number that counts on. None is believed if
    fewer than half of the pages have one.

    Args:
      texts: of the document's pages, in order.
    """
    candidates = [_at_edges(text) for text in texts]
    found: list[set[int]] = []
    for place, numbers in enumerate(candidates):
        near = [other for other in range(max(place - 4, 0), min(place + 5, len(texts)))
                if other != place]
        found.append({number for number in numbers if max(
            sum(number + step * (other - place) in candidates[other] for other in near)
            for step in (1, 2)) >= min(2, len(near))} if near else set())
    known = [(place, number) for place, numbers in enumerate(found) for number in sorted(numbers)
             if len(numbers) == 1]
    for (place, number), (after, other) in zip(known, known[1:], strict=False):
        if other - number == after - place:
            for between in range(place + 1, after):
                found[between] = found[between] or {number + between - place}
    believed = 2 * sum(map(bool, found)) >= len(found)
    return [frozenset(numbers if believed else ()) for numbers in found]


class NamedPages:
    """Puts pages that queries name by their number before others of the documents found.

    Which document is meant the retriever says: of the documents of its hits, in their order,
    the pages of that number gain one and a half times what a first hit has, half, a third of
    it, and so on. So of the first document they are the first hits, though they may share no
    word with the query.
    A number printed on a page counts before its place in the document, which counts half then.
    Queries that name no page are the retriever's own. Retrievers of texts are asked without what
    only says how to write an answer (`answer_forms.py`).

    Args:
      store: the pages, with the texts that they are known to have.
      ids: of the pages, in the retriever's order.
    """

    def __init__(self, store: PageStore, ids: Sequence[str]):
        self._store = store
        self._row = {page_id: row for row, page_id in enumerate(ids)}
        self._pages: dict[str, list[str]] | None = None
        self._printed: dict[str, dict[int, list[str]]] = {}

    def search(self, retriever: Retriever, queries: Sequence[str], k: int,
               allowed: np.ndarray | None = None) -> Hits:
        """Searches as the retriever does, see `Retriever.search`.

        Scores of queries that name a page are sums of reciprocal ranks.
        """
        if retriever.reads == {'text'}:
            searched = [without_answer_form(query) for query in queries]
        else:
            searched = list(queries)  # Models of images are given what they were trained on.
        named = {place: pages for place, query in enumerate(queries)
                 if (pages := named_pages(query))}
        rest = [query for place, query in enumerate(searched) if place not in named]
        plain = iter(zip(*retriever.search(rest, k, allowed), strict=True)) if rest else iter(())
        deep = iter(zip(*retriever.search([searched[place] for place in named], max(k, DEPTH),
                                          allowed), strict=True)) if named else iter(())
        ids, scores = [], []
        for place in range(len(queries)):
            if place in named:
                hits, values = self._first(next(deep)[0], named[place], k, allowed)
            else:
                hits, values = next(plain)
            ids.append(hits)
            scores.append(values)
        return ids, scores

    def _first(self, hits: Sequence[str], pages: Sequence[NamedPage], k: int,
               allowed: np.ndarray | None) -> tuple[list[str], np.ndarray]:
        totals = {page_id: 1 / (_CONSTANT + rank) for rank, page_id in enumerate(hits, start=1)}
        documents = list(dict.fromkeys(self._store[page_id].document for page_id in hits))
        if not documents and allowed is not None:
            # A filter may leave one document, none of whose pages shares a word with the query.
            rows = {page_id for page_id, row in self._row.items() if allowed[row]}
            documents = list({self._store[page_id].document for page_id in rows})
            documents = documents if len(documents) == 1 else []
        for rank, document in enumerate(documents, start=1):
            for page in pages:
                for page_id, weight in self._named(document, page):
                    if allowed is None or allowed[self._row[page_id]]:
                        totals[page_id] = totals.get(page_id, 0) + weight * _GAIN / rank
        best = sorted(totals, key=lambda page_id: (-totals[page_id], self._row[page_id]))[:k]
        return best, np.array([totals[page_id] for page_id in best], np.float32)

    def _named(self, document: str, named: NamedPage) -> Iterable[tuple[str, float]]:
        """Returns the pages of a document that may be meant, and how much each is."""
        if self._pages is None:
            pages: dict[str, list[str]] = {}
            for page in self._store:
                if page.page_id in self._row:
                    pages.setdefault(page.document, []).append(page.page_id)
            for ids in pages.values():
                ids.sort(key=lambda page_id: self._store[page_id].page)
            self._pages = pages
        ids = self._pages[document]
        number = named.number
        if number < 0:
            return [(ids[number], 1.0)] if -number <= len(ids) else []
        if document not in self._printed:
            by_number: dict[int, list[str]] = {}
            texts = [self._store[page_id].text or '' for page_id in ids]
            for page_id, printed in zip(ids, printed_numbers(texts), strict=True):
                for value in printed:
                    by_number.setdefault(value, []).append(page_id)
            self._printed[document] = by_number
        printed_on = self._printed[document].get(number, []) if named.printed else []
        found = [(page_id, 1.0) for page_id in printed_on]
        by_place = self._store.find(document, number)
        if by_place in self._row and by_place not in printed_on:
            found.append((by_place, 0.5 if printed_on else 1.0))
        return found


def _at_edges(text: str) -> frozenset[int]:
    """Returns the numbers at the begin or end of a page's first two and last three lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbers = set()
    for line in [*lines[:2], *lines[-3:]]:
        for match in (re.match(r'\D{0,2}(\d{1,5})(?![\d.,/%-])', line),
                      re.search(r'(?<![\d.,/$-])(\d{1,5})\W{0,2}$', line),
                      re.search(r'\b(?:page|p\.)\s*(\d{1,5})\b', line, re.IGNORECASE)):
            if match:
                numbers.add(int(match[1]))
    return frozenset(numbers)


def _listed(text: str) -> list[int]:
    """Returns the numbers of '3', '3, 4 and 7' or '3-5'."""
    numbers: list[int] = []
    previous = ''
    for part in re.split(r'(\d+)', text):
        if not part.isdecimal():
            previous = part
            continue
        number = int(part)
        if numbers and re.search(r'-|\u2013|to', previous):
            if number - numbers[-1] > _LONGEST_RANGE:
                return []
            numbers += range(numbers[-1] + 1, number + 1)
        else:
            numbers.append(number)
    return numbers


def _ordinal(text: str) -> int:
    return _ORDINALS.get(text.lower()) or int(re.match(r'\d+', text)[0])  # type: ignore[index]


def _han_number(text: str) -> int:
    """Returns the value of '12', '三', '十二' or '二十', up to 99."""
    if text.isdecimal():
        return int(text)
    tens, ten, ones = text.rpartition('十')
    if not ten:
        return _HAN.get(text, 0)
    return 10 * (_HAN.get(tens, 0) if tens else 1) + (_HAN.get(ones, 0) if ones else 0)
