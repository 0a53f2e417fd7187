"""An expert for PageWorld that knows every layout and plays episodes by a script.

Its texts are what the tiny policy learns from, so they are short, and they
write down what is seen before they use it: which panel is looked for, the headings
of the page in reading order up to that one, the values of a crop.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

from vrag_jax.data.pageworld.layout import PageSpec, PanelSpec
from vrag_jax.data.pageworld.transcripts import (
    box_around,
    box_text,
    find_panel,
    read_panel,
)
from vrag_jax.data.records import Question
from vrag_jax.perception.frames import Frame
from vrag_jax.rollout.episode import Episode


@dataclasses.dataclass(frozen=True)
class ExpertStyle:
    """Habits of an expert. Lengths are pixels of the image as the encoder sees it.

    Attributes:
      zooms: whether it zooms into the body of a panel and writes down what it sees, or
        gives values straight from the page, with eyes better than the policy's.
      margin: what its boxes show around the body on each side.
      jitter: each edge is moved by up to this much; with `jitter <= margin` the
        box holds the whole body.
      shift: the whole box is moved, sideways and up or down, by up to this much.
    """

    zooms: bool = True
    margin: int = 0
    jitter: int = 0
    shift: int = 0

    def __post_init__(self):
        if min(self.margin, self.jitter, self.shift) < 0:
            raise ValueError('margin, jitter and shift must not be negative')


STYLES: Mapping[str, ExpertStyle] = {
    'careful': ExpertStyle(margin=1),
    'loose': ExpertStyle(margin=5, jitter=2),
    'hasty': ExpertStyle(zooms=False),
}


@dataclasses.dataclass(frozen=True)
class ExpertState:
    """What an expert needs to know of an episode.

    Attributes:
      shown: frames of the images that were shown, in order.
      turns: turns that have been played.
    """

    shown: Sequence[Frame] = ()
    turns: int = 0

    @classmethod
    def of(cls, episode: Episode) -> 'ExpertState':
        """Returns the state of an episode under way."""
        return cls([view.frame for view in episode.images], len(episode.turns))


class ScriptedExpert:
    """Answers PageWorld questions by their programs (`Question.extra`).

    Args:
      layouts: what stands on each page, by page id.
      style: its habits.
      seed: of its jitter; equal seeds and states give equal texts.
    """

    def __init__(self, layouts: Mapping[str, PageSpec], style: ExpertStyle, seed: int = 0):
        self._pages = {(page.document, page.topic): page for page in layouts.values()}
        self._style = style
        self._seed = seed

    def act(self, question: Question, state: ExpertState) -> str:
        """Returns the text of the next turn.

        Raises:
          KeyError: if the question is not one of this PageWorld.
        """
        hops = self._hops(question)
        if state.turns > len(state.shown):
            return _turn(' not found.', 'answer', ' none')
        if not state.shown:
            return _search(hops[0][0])
        number, zoomed = self._progress(hops, state.shown)
        page, panel = hops[number]
        last = state.shown[-1]
        if last.page_id != page.page_id:
            return _turn(' other page.', 'search', _query(page))
        goal = question.extra.get('position', panel.heading)
        seen = '' if zoomed else find_panel(page, panel, goal)
        if question.extra['kind'] == 'layout':
            return _turn(seen, 'answer', f' {panel.heading}')
        if self._style.zooms and not zoomed:
            rng = random.Random(f'{self._seed}/{question.uid}/{len(state.shown)}')
            style = self._style
            box = box_around(
                last, panel.body_box, style.margin, style.jitter, rng, style.shift)
            return _turn(seen, 'bbox', box_text(box))
        if zoomed:
            seen = read_panel(panel, until=question.extra.get('column', ''))
        if number + 1 < len(hops):
            return _turn(seen, 'search', _query(hops[number + 1][0]))
        return _turn(seen, 'answer', question.answer)

    def _hops(self, question: Question) -> list[tuple[PageSpec, PanelSpec]]:
        """Returns the pages to find, and on each the panel to read."""
        program = question.extra
        page = self._pages[program['document'], program['topic']]
        if 'position' in program:
            panel = next(p for p in page.panels if p.position == program['position'])
        else:
            panel = page.panel(program['heading'])
        hops = [(page, panel)]
        if 'target_topic' in program:
            second = self._pages[program['document'], program['target_topic']]
            hops.append((second, second.panel(program['target_heading'])))
        return hops

    def _progress(self, hops: Sequence[tuple[PageSpec, PanelSpec]],
                  shown: Sequence[Frame]) -> tuple[int, bool]:
        """Returns the number of the hop under way and whether its panel was zoomed into."""
        number, done = 0, False
        for frame in shown:
            if done and number + 1 < len(hops):
                number, done = number + 1, False
            if frame.page_id == hops[number][0].page_id:
                done = not (self._style.zooms and frame.shows_whole_page)
        return number, done and self._style.zooms


def _search(page: PageSpec) -> str:
    return _turn(f' {page.topic}.', 'search', _query(page))


def _query(page: PageSpec) -> str:
    # The space makes the tokens those of the question, which are then copied.
    return f' {page.document} {page.topic}'


def _turn(thought: str, tag: str, content: str) -> str:
    return f'<think>{thought}</think><{tag}>{content}</{tag}>'
