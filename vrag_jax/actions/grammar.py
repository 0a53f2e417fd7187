"""The grammar of the policy's turns: one thought, one action.

A turn is read from left to right. Outside any tag, `<think>`, `<search>`,
`<bbox>` and `<answer>` open a tag; inside a tag only its own closing tag means
anything. The action is the first tag other than `<think>` that is closed, and
what follows it is ignored, because generation stops there. `stopping` builds
the same reading as an automaton over token ids.
"""

import dataclasses
import math
import re

from vrag_jax.perception.frames import box_fault

INVALID = 'invalid'
"""Kind of a turn that holds no action, or one that cannot be carried out."""


@dataclasses.dataclass(frozen=True)
class Action:
    """One parsed turn.

    Attributes:
      kind: its tag, or `INVALID`.
      thought: text inside `<think>`, stripped; several are joined by newlines.
      text: query or answer, stripped; '' for a box.
      box: x1, y1, x2, y2 in pixels of the image as the encoder saw it, only for
        'bbox'; finite, not negative, with an area.
      image: which image of the trajectory the box is on, from 1; None is the last.
      reason: why the action is invalid, '' otherwise.
    """

    kind: str
    thought: str = ''
    text: str = ''
    box: tuple[float, float, float, float] | None = None
    image: int | None = None
    reason: str = ''


THINK = 'think'
ACTION_TAGS = ('search', 'bbox', 'answer')

# A space opens `<bbox` as well: attributes follow it.
_OPENING = re.compile(r'<(?:(think|search|answer)>|(bbox)(?=[> ]))')
_BRACKETS = re.compile(r'\[[^\[\]]*\]')
_NUMBER = re.compile(r'[+-]?(?:\d+\.?\d*|\.\d+)', re.ASCII)
_NOT_FINITE = re.compile(r'[+-]?(?:nan|inf|infinity)', re.IGNORECASE)
_IMAGE = re.compile(r'image\s*=\s*"0*([1-9]\d{0,8})"', re.ASCII)


class _InvalidAction(ValueError):
    """A closed action that means nothing; the message is the reason."""


def parse_action(text: str, allow_image_index: bool = False,
                 search_chars: int | None = None) -> Action:
    """Reads one turn of the policy; never raises.

    Args:
      text: the policy's turn, any string.
      allow_image_index: whether `<bbox image="k">` is part of the grammar.
      search_chars: characters of a search query, at most; None for any number.

    Returns:
      The first closed action outside `<think>`, or an invalid one that says why.
    """
    thoughts: list[str] = []
    position = 0
    while opening := _OPENING.search(text, position):
        tag = opening[1] or opening[2]
        end = text.find(f'</{tag}>', opening.end())
        if end < 0:
            return _invalid(thoughts, f'<{tag}> is not closed')
        inside = text[opening.end():end]
        if tag != THINK:
            try:
                return _closed_action(tag, inside, thoughts, allow_image_index, search_chars)
            except _InvalidAction as error:
                return _invalid(thoughts, str(error))
        thoughts.append(inside.strip())
        position = end + len(f'</{tag}>')
    return _invalid(thoughts, 'there is no action')


def _invalid(thoughts: list[str], reason: str) -> Action:
    return Action(INVALID, thought='\n'.join(thoughts), reason=reason)


def _closed_action(tag: str, inside: str, thoughts: list[str], allow_image_index: bool,
                   search_chars: int | None) -> Action:
    thought = '\n'.join(thoughts)
    if tag == 'bbox':
        attributes, bracket, content = inside.partition('>')
        if not bracket:
            raise _InvalidAction('<bbox is not followed by >')
        image = _parse_image(attributes.strip(), allow_image_index)
        return Action('bbox', thought, box=_parse_box(content.strip()), image=image)
    content = inside.strip()
    if not content:
        raise _InvalidAction('the query is empty' if tag == 'search' else 'the answer is empty')
    if tag == 'search' and search_chars is not None and len(content) > search_chars:
        raise _InvalidAction(f'the query has {len(content)} characters; {search_chars} are allowed')
    return Action(tag, thought, text=content)


def _parse_image(attributes: str, allowed: bool) -> int | None:
    if not attributes:
        return None
    if not allowed:
        raise _InvalidAction('<bbox> takes no attributes')
    match = _IMAGE.fullmatch(attributes)
    if not match:
        raise _InvalidAction('the image index must be a positive integer, as in image="1"')
    return int(match[1])


def _parse_box(content: str) -> tuple[float, float, float, float]:
    if len(_BRACKETS.findall(content)) > 1:
        raise _InvalidAction('there is more than one box')
    if not (content.startswith('[') and content.endswith(']')):
        raise _InvalidAction('a box must be written as [x1, y1, x2, y2]')
    parts = [part.strip() for part in content[1:-1].split(',')]
    numbers = [float(part) if _NUMBER.fullmatch(part)
               else math.nan if _NOT_FINITE.fullmatch(part) else None for part in parts]
    if len(numbers) != 4 or None in numbers:
        raise _InvalidAction('a box must be four numbers')
    x1, y1, x2, y2 = (number for number in numbers if number is not None)
    box = (x1, y1, x2, y2)
    reason = box_fault(box)
    if reason:
        raise _InvalidAction(reason)
    return box
