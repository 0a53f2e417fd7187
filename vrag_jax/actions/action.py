"""What an action is: a parsed turn, and the table row from which all about its kind follows."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from vrag_jax.actions.observation import Messages, Observation
from vrag_jax.actions.rules import ActionRules
from vrag_jax.perception.frames import Box, Frame

THINK = 'think'
INVALID = 'invalid'
"""Kind of a turn that holds no action, or one that cannot be carried out."""

_TAG = re.compile('[a-z][a-z0-9_]*')


class InvalidAction(ValueError):
    """An action that means nothing or cannot be carried out; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Action:
    """One parsed turn.

    Attributes:
      kind: its tag, or `INVALID`.
      thought: text inside `<think>`, stripped; several are joined by newlines.
      text: query, answer or whatever else stands inside the tag, stripped; '' for a box.
      box: x1, y1, x2, y2 in pixels of the image as the encoder saw it, of actions with a
        box; finite, not negative, with an area.
      image: which image of the trajectory the box is on, from 1; None is the last.
      reason: why the action is invalid, '' otherwise.
      start: where in the turn its tag opens.
    """

    kind: str
    thought: str = ''
    text: str = ''
    box: Box | None = None
    image: int | None = None
    reason: str = ''
    start: int = dataclasses.field(default=0, compare=False)


class ImageShown(Protocol):
    @property
    def frame(self) -> Frame:
        """Where on which page the image lies."""


class EpisodeSoFar(Protocol):
    """What an action may look at of its episode."""

    @property
    def images(self) -> Sequence[ImageShown]:
        """The images that were shown, in order."""

    @property
    def retrieved(self) -> Sequence[str]:
        """Ids of the pages that were shown, in order."""


class PageFound(Protocol):
    @property
    def page_id(self) -> str: ...


class ActionContext(Protocol):
    """What an action may use; safe to use from many threads."""

    @property
    def config(self) -> ActionRules: ...

    @property
    def messages(self) -> Messages: ...

    def search(self, queries: Sequence[str]) -> Sequence[Sequence[PageFound]]:
        """Returns the hits of each query, best first."""

    def page_image(self, page_id: str) -> Image.Image:
        """Returns a page at its full resolution."""

    def page_view(self, page_id: str) -> tuple[Image.Image, Frame]:
        """Returns a page at the size at which it is shown, and its frame."""


@dataclasses.dataclass(frozen=True, eq=False)
class ActionType:
    """A kind of action: a row of the table `registry.ACTIONS`.

    Attributes:
      tag: it is written `<tag>...</tag>`; lower-case letters, digits and underscores.
      parse: `(content, rules) -> Action`, of the text inside the tag, stripped; raises
        `InvalidAction`. With `attributes`, what stands in the opening tag is a third argument.
      run: `(context, episode, action) -> Observation`: carries it out, or raises
        `InvalidAction`. With `prepare`, what that gave for this action is a fourth argument.
      prompt_line: tells the policy how to write it and what it does, for `{actions}` in a prompt.
      hint: the same in a few words, for `{actions}` in the message after an invalid action.
      label: heading of such a turn in reports.
      metrics: figures of rollouts, by name: the mean of `Action -> float` over all turns,
        also those of other actions.
      used: name of the share of trajectories that take it, in results; '' leaves it out.
      prepare: `(context, actions) -> results`, one each: a batched step for the actions of all
        episodes, such as searching.
      attributes: whether a space may follow the tag's name, and attributes that.
    """

    tag: str
    parse: Callable[..., Action]
    run: Callable[..., Observation]
    prompt_line: str
    hint: str
    label: str
    metrics: Mapping[str, Callable[[Action], float]] = dataclasses.field(default_factory=dict)
    used: str = ''
    prepare: Callable[[ActionContext, Sequence[Action]], Sequence[Any]] | None = None
    attributes: bool = False

    def __post_init__(self):
        if not _TAG.fullmatch(self.tag) or self.tag in (THINK, INVALID):
            raise ValueError(f'an action cannot have the tag {self.tag!r}: lower-case letters, '
                             f'digits and underscores, and neither {THINK!r} nor {INVALID!r}')
