"""Random page layouts: what is on each page of a document, and where."""

import dataclasses
import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from vrag_jax.data.pageworld.config import GAP, PageWorldConfig

Box = tuple[int, int, int, int]

TOPICS = ('market', 'finance', 'energy', 'health', 'travel', 'school', 'water', 'sport',
          'food', 'music', 'traffic', 'weather')
# Without what are words of everyday English, which searches pass over.
_WORDS = frozenset('be de do for go he her me no nor per re so ten to'.split())
_PARTS = tuple(part for c in 'bdfghjklmnprstvz' for v in 'aeiou' for end in ('', 'l', 'n', 'r')
               if (part := c + v + end) not in _WORDS)


@dataclasses.dataclass(frozen=True)
class PanelSpec:
    """One panel. Boxes are `(x1, y1, x2, y2)` in raw page pixels.

    Attributes:
      heading: its letter, unique on the page.
      kind: 'text', 'table', 'chart' or 'pointer'.
      position: where on the page, e.g. 'top left'.
      box: the whole panel.
      heading_box: ink of the heading.
      body_box: the body, which is the evidence box.
      cells: three digits; of a pointer `('>', letter, '')`.
      target: page number and heading that a pointer names, else None.
      tint: index of the header's colour.
    """

    heading: str
    kind: str
    position: str
    box: Box
    heading_box: Box
    body_box: Box
    cells: tuple[str, str, str]
    target: tuple[int, str] | None
    tint: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> 'PanelSpec':
        """Reads what `dataclasses.asdict` and JSON made of a panel."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()}
        return cls(**fields)

    @property
    def text(self) -> str:
        """The values as words for the page's text."""
        if self.kind == 'text':
            return ''.join(self.cells)
        return ' '.join(cell for cell in self.cells if cell)


@dataclasses.dataclass(frozen=True)
class PageSpec:
    """One page; `panels` are in reading order, `page` counts from 1."""

    page_id: str
    document: str
    page: int
    topic: str
    title: str
    panels: tuple[PanelSpec, ...]

    def panel(self, heading: str) -> PanelSpec:
        """Returns the panel under a heading; KeyError if there is none."""
        for panel in self.panels:
            if panel.heading == heading:
                return panel
        raise KeyError(f'page {self.page_id} has no panel {heading!r}')

    @property
    def text(self) -> str:
        """All that can be read on the page, for text retrieval."""
        return ' '.join([self.title, *(f'{p.heading} {p.text}' for p in self.panels)])

    def to_json(self) -> str:
        """Returns the page as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> 'PageSpec':
        """Reads what `to_json` wrote."""
        values = json.loads(line)
        values['panels'] = tuple(PanelSpec.from_dict(panel) for panel in values['panels'])
        return cls(**values)


def document_names(seed: int, count: int) -> list[str]:
    """Returns `count` different made-up names of two parts, such as 'tan-lor'.

    First and second parts are different, so that no name holds the parts of another
    in another order, which a search for words could not tell apart. They are no more
    than names need: each is then so common that a small tokenizer has a token for it,
    in any split. The hyphen keeps tokens from crossing from one part to the other.

    Raises:
      ValueError: if there are not as many names.
    """
    half = len(_PARTS) // 2
    if count > half**2:
        raise ValueError(f'there are {half**2} document names, but {count} documents are wanted')
    rng = random.Random(f'{seed}/names')
    size = min(half, math.isqrt(2 * count) + 1)
    parts = rng.sample(_PARTS, 2 * size)
    chosen = rng.sample(range(size**2), count)
    return [f'{parts[n // size]}-{parts[size + n % size]}' for n in chosen]


def position_names(grid: tuple[int, int]) -> list[str]:
    """Returns the names of the places of a grid in reading order."""
    rows, columns = grid
    vertical = {1: [''], 2: ['top', 'bottom'], 3: ['top', 'middle', 'bottom']}.get(
        rows, [f'row {r + 1}' for r in range(rows)])
    horizontal = {1: [''], 2: ['left', 'right'], 3: ['left', 'center', 'right']}.get(
        columns, [f'column {c + 1}' for c in range(columns)])
    return [f'{v} {h}'.strip() for v in vertical for h in horizontal]


def _topics(count: int) -> list[str]:
    """Returns at least `count` different topics: the words, then 'market 2' and so on."""
    rounds = range(1, 1 + -(-count // len(TOPICS)))
    return [word if n == 1 else f'{word} {n}' for n in rounds for word in TOPICS]


def sample_document(config: PageWorldConfig, name: str) -> list[PageSpec]:
    """Draws the pages of a document; equal arguments give equal pages."""
    rng = random.Random(f'{config.seed}/document/{name}')
    count = config.pages_per_document
    topics = rng.sample(_topics(count), count)
    kinds = _sample_kinds(config, rng)
    headings = [rng.sample(config.heading_letters, config.panels) for _ in range(count)]
    targets = _sample_targets(rng, kinds, headings)
    pages = []
    for number in range(1, count + 1):
        places = _sample_places(config, rng)
        panels = tuple(
            _sample_panel(rng, kind, heading, place, next(targets) if kind == 'pointer' else None)
            for kind, heading, place in zip(
                kinds[number - 1], headings[number - 1], places, strict=True))
        topic = topics[number - 1]
        pages.append(PageSpec(f'{name}_{number}', name, number, topic, f'{name} {topic}', panels))
    return pages


def _sample_kinds(config: PageWorldConfig, rng: random.Random) -> list[list[str]]:
    """Deals kinds to pages like cards, so that a document holds all of them alike."""
    while True:
        deck: list[str] = []
        pages = []
        for _ in range(config.pages_per_document):
            while len(deck) < config.kinds_per_page:
                deck += rng.sample(config.kinds, len(config.kinds))
            hand, deck = deck[:config.kinds_per_page], deck[config.kinds_per_page:]
            kinds = [hand[i % len(hand)] for i in range(config.panels)]
            rng.shuffle(kinds)
            pages.append(kinds)
        if _answerable(pages):
            return pages


def _answerable(pages: list[list[str]]) -> bool:
    """Whether each page with a pointer has another page with a number to point to."""
    return all(
        any('text' in other for j, other in enumerate(pages) if j != i)
        for i, kinds in enumerate(pages) if 'pointer' in kinds)


def _sample_targets(
    rng: random.Random, kinds: list[list[str]], headings: list[list[str]]
) -> Iterator[tuple[int, str]]:
    """Yields for each pointer, in order, the number panel of another page it names."""
    for page, row in enumerate(kinds):
        choices = [
            (other + 1, headings[other][i])
            for other, others in enumerate(kinds) if other != page
            for i, kind in enumerate(others) if kind == 'text']
        count = row.count('pointer')
        # The pointers of a page name different panels as far as there are any.
        yield from (rng.sample(choices, len(choices)) * count)[:count]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a panel and its parts lie."""

    position: str
    box: Box
    heading_box: Box
    body_box: Box


def _sample_places(config: PageWorldConfig, rng: random.Random) -> list[_Place]:
    rows, columns = config.grid
    width, height = config.panel_size
    cell_width = config.page_size[0] // columns
    cell_height = (config.page_size[1] - config.title_height) // rows
    places = []
    for index, position in enumerate(position_names(config.grid)):
        row, column = divmod(index, columns)
        x = column * cell_width + GAP // 2 + rng.randint(0, 2 * config.panel_jitter)
        y = (config.title_height + row * cell_height + GAP // 2
             + rng.randint(0, 2 * config.panel_jitter))
        side = config.heading_height
        heading_x, heading_y = x + (width - side) // 2, y + (config.header_height - side) // 2
        body_width, body_height = config.body_size
        body_x = x + GAP + _jittered(rng, width - 2 * GAP - body_width, config.body_jitter)
        body_y = y + config.header_height + GAP + _jittered(
            rng, height - config.header_height - 2 * GAP - body_height, config.body_jitter)
        places.append(_Place(
            position, (x, y, x + width, y + height),
            (heading_x, heading_y, heading_x + side, heading_y + side),
            (body_x, body_y, body_x + body_width, body_y + body_height)))
    return places


def _jittered(rng: random.Random, room: int, jitter: float) -> int:
    """Returns an offset in `[0, room]`, around the middle where `jitter` < 1."""
    return round(room * (0.5 + jitter * (rng.random() - 0.5)))


def _sample_panel(
    rng: random.Random, kind: str, heading: str, place: _Place, target: tuple[int, str] | None
) -> PanelSpec:
    if target is None:
        # A number does not start with 0.
        digits = [rng.randint(1 if kind == 'text' else 0, 9), rng.randint(0, 9), rng.randint(0, 9)]
        first, second, third = map(str, digits)
        cells = (first, second, third)
    else:
        cells = ('>', target[1], '')
    return PanelSpec(heading, kind, place.position, place.box, place.heading_box, place.body_box,
                     cells, target, rng.randrange(1 << 16))
