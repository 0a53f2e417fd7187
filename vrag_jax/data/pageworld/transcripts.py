"""What is written down of a page by one who sees it well: the targets of training."""

import math
import random

from vrag_jax.data.pageworld.config import COLUMNS
from vrag_jax.data.pageworld.layout import PageSpec, PanelSpec
from vrag_jax.data.records import Question
from vrag_jax.perception.frames import Box, Frame


def read_headings(page: PageSpec, until: PanelSpec | None = None) -> str:
    """Returns headings and their positions in reading order.

    Args:
      page: the page.
      until: reading stops at this panel, as one does who has found what was looked
        for. What is meant then stands last, and needs not be looked up again.

    Returns:
      The text, e.g. ' A top left K top right.'.
    """
    panels = page.panels if until is None else page.panels[:page.panels.index(until) + 1]
    return ''.join(f' {panel.heading} {panel.position}' for panel in panels) + '.'


def find_panel(page: PageSpec, panel: PanelSpec, question: Question) -> str:
    """Returns the thought that finds a panel, e.g. ' K: A top left K top right.'.

    It begins with what is looked for, so that this stands close to what is read.
    """
    wanted = panel.position if 'position' in question.extra else panel.heading
    return f' {wanted}:{read_headings(page, until=panel)}'


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
