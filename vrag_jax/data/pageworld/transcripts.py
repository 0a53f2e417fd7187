"""Ground-truth transcripts of page regions, the targets of pretraining."""

import math
import random
from collections.abc import Sequence

from vrag_jax.data.pageworld.config import COLUMNS
from vrag_jax.data.pageworld.layout import PageSpec, PanelSpec
from vrag_jax.perception.frames import Box, Frame


def read_headings(page: PageSpec) -> str:
    """Returns all positions and their headings in reading order: ' top left A top right K.'."""
    return _listing(page.panels) + '.'


def find_panel(page: PageSpec, panel: PanelSpec, goal: str) -> str:
    """Returns the thought that finds a panel, e.g. ' K: top left A top right K.'.

    It says what is looked for and writes the page down until that comes. Where to stop
    is then seen by comparing each word with the first, and what was found stands last,
    right before it is used: both are easier to learn than looking something up in a
    complete list.

    Args:
      page: the page.
      panel: one of its panels.
      goal: its heading or its position, whichever the question gives.
    """
    seen = page.panels[:page.panels.index(panel) + 1]
    return f' {goal}:{_listing(seen)}.'


def _listing(panels: Sequence[PanelSpec]) -> str:
    return ''.join(f' {panel.position} {panel.heading}' for panel in panels)


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
    frame: Frame, region: Box, margin: int = 0, jitter: int = 0,
    rng: random.Random | None = None, shift: int = 0,
) -> Box:
    """Returns a box of whole encoder pixels around a region of the page.

    Args:
      frame: the image on which the box is given.
      region: x1, y1, x2, y2 in raw page pixels.
      margin: encoder pixels added on each side.
      jitter: each edge is moved by up to this many encoder pixels; where
        `jitter + shift <= margin` the box holds the whole region.
      rng: source of jitter and shift.
      shift: the whole box is moved by up to this many encoder pixels each way.

    Raises:
      ValueError: if there is jitter or shift but no `rng`.
    """
    if (jitter or shift) and rng is None:
        raise ValueError('jitter and shift need an rng')
    x1, y1, x2, y2 = frame.from_page(region)
    if shift and rng is not None:
        right, down = (rng.randint(-shift, shift) for _ in range(2))
        x1, y1, x2, y2 = x1 + right, y1 + down, x2 + right, y2 + down
    left, top, right, bottom = (
        edge + (rng.randint(-jitter, jitter) if rng else 0)
        for edge in (math.floor(x1) - margin, math.floor(y1) - margin,
                     math.ceil(x2) + margin, math.ceil(y2) + margin))
    width, height = frame.box_size
    left, top = max(0, min(left, width - 1)), max(0, min(top, height - 1))
    return left, top, max(left + 1, min(right, width)), max(top + 1, min(bottom, height))
