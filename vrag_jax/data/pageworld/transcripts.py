"""What is written down of a page by one who sees it well: the targets of training."""

import math
import random

from vrag_jax.data.pageworld.config import COLUMNS
from vrag_jax.data.pageworld.layout import PageSpec, PanelSpec
from vrag_jax.data.records import Question
from vrag_jax.perception.frames import Box, Frame


def read_headings(page: PageSpec, position_first: bool = False) -> str:
    """Returns all headings and their positions in reading order.

    Args:
      page: the page.
      position_first: whether a position stands before its heading: ' top left A top
        right K.' instead of ' A top left K top right.'.
    """
    pairs = ((panel.heading, panel.position) for panel in page.panels)
    return ''.join(
        f' {position} {heading}' if position_first else f' {heading} {position}'
        for heading, position in pairs) + '.'


def find_panel(page: PageSpec, panel: PanelSpec, question: Question) -> str:
    """Returns the thought that finds a panel, e.g. ' A top left K top right. K top right.'.

    The page is written down with that first by which the question names its panel.
    What is looked for then follows where it stood before: looking it up is copying.
    """
    if 'position' in question.extra:
        return f'{read_headings(page, position_first=True)} {panel.position} {panel.heading}.'
    return f'{read_headings(page)} {panel.heading} {panel.position}.'


def read_panel(panel: PanelSpec, until: str = '') -> str:
    """Returns what stands in a body: '472.', ' a4 b7 c2.' or ' names M.'.

    Args:
      panel: the panel.
      until: of a table or chart, the column at which reading stops; '' reads all.
    """
    if panel.kind == 'pointer':
        return f' names {panel.cells[1]}.'
    if panel.kind == 'text':
        return f'{panel.text}.'
    count = COLUMNS.index(until) + 1 if until else len(COLUMNS)
    pairs = zip(COLUMNS[:count], panel.cells, strict=False)
    return ''.join(f' {name}{cell}' for name, cell in pairs) + '.'


def box_text(box: Box) -> str:
    """Returns a box as it stands inside `<bbox>`, without the spaces that cost tokens."""
    return '[' + ','.join(f'{edge:g}' for edge in box) + ']'


def box_around(
    frame: Frame, region: Box, margin: int = 0, jitter: int = 0, rng: random.Random | None = None
) -> Box:
    """Returns a box of whole encoder pixels around a region of the page.

    Args:
      frame: the image on which the box is given.
      region: x1, y1, x2, y2 in raw page pixels.
      margin: encoder pixels added on each side.
      jitter: each edge is moved by up to this many encoder pixels; where
        `jitter <= margin` the box holds the whole region.
      rng: source of the jitter.

    Raises:
      ValueError: if there is jitter but no `rng`.
    """
    if jitter and rng is None:
        raise ValueError('jitter needs an rng')
    x1, y1, x2, y2 = frame.from_page(region)
    left, top, right, bottom = (
        edge + (rng.randint(-jitter, jitter) if rng else 0)
        for edge in (math.floor(x1) - margin, math.floor(y1) - margin,
                     math.ceil(x2) + margin, math.ceil(y2) + margin))
    width, height = frame.encoder_size
    left, top = max(0, min(left, width - 1)), max(0, min(top, height - 1))
    return left, top, max(left + 1, min(right, width)), max(top + 1, min(bottom, height))
