"""`<bbox>[x1, y1, x2, y2]</bbox>`: cuts a region out of the full-resolution page and zooms in.

With `allow_image_index`, `<bbox image="k">` names the image that the box is on, from 1.
"""

import math
import re

from vrag_jax.actions.action import Action, ActionContext, ActionType, EpisodeSoFar, InvalidAction
from vrag_jax.actions.observation import Observation
from vrag_jax.actions.registry import ACTIONS
from vrag_jax.actions.rules import ActionRules
from vrag_jax.perception.frames import Box, box_fault
from vrag_jax.perception.image_ops import check_box, crop_and_zoom

_BRACKETS = re.compile(r'\[[^\[\]]*\]')
_NUMBER = re.compile(r'[+-]?(?:\d+\.?\d*|\.\d+)', re.ASCII)
_NOT_FINITE = re.compile(r'[+-]?(?:nan|inf|infinity)', re.IGNORECASE)
_IMAGE = re.compile(r'image\s*=\s*"0*([1-9]\d{0,8})"', re.ASCII)


def _parse(content: str, rules: ActionRules, attributes: str) -> Action:
    image = _parse_image(attributes, rules.allow_image_index)
    return Action('bbox', box=_parse_box(content), image=image)


def _parse_image(attributes: str, allowed: bool) -> int | None:
    if not attributes:
        return None
    if not allowed:
        raise InvalidAction('<bbox> takes no attributes')
    match = _IMAGE.fullmatch(attributes)
    if not match:
        raise InvalidAction('the image index must be a positive integer, as in image="1"')
    return int(match[1])


def _parse_box(content: str) -> Box:
    if len(_BRACKETS.findall(content)) > 1:
        raise InvalidAction('there is more than one box')
    if not (content.startswith('[') and content.endswith(']')):
        raise InvalidAction('a box must be written as [x1, y1, x2, y2]')
    parts = [part.strip() for part in content[1:-1].split(',')]
    numbers = [float(part) if _NUMBER.fullmatch(part)
               else math.nan if _NOT_FINITE.fullmatch(part) else None for part in parts]
    if len(numbers) != 4 or None in numbers:
        raise InvalidAction('a box must be four numbers')
    x1, y1, x2, y2 = (number for number in numbers if number is not None)
    box = (x1, y1, x2, y2)
    reason = box_fault(box)
    if reason:
        raise InvalidAction(reason)
    return box


def _run(context: ActionContext, episode: EpisodeSoFar, action: Action) -> Observation:
    if not episode.images or action.box is None:
        raise InvalidAction('there is no image yet')
    if action.image is not None and action.image > len(episode.images):
        raise InvalidAction(f'there is no image {action.image}')
    frame = episode.images[(action.image or 0) - 1].frame
    reason = check_box(action.box, frame)
    if reason is not None:
        raise InvalidAction(reason)
    rules = context.config
    view = crop_and_zoom(
        context.page_image(frame.page_id), frame, action.box, rules.limits, rules.padding)
    return Observation.of_image(view, context.messages.crop)


ACTIONS.add(ActionType(
    tag='bbox', parse=_parse, run=_run, attributes=True, label='Zoom', used='zoomed',
    prompt_line='<bbox>[x1, y1, x2, y2]</bbox> cuts a region out of the last image and shows it '
                'larger; the corners are in pixels of that image.',
    hint='zoom into the last image with <bbox>[x1, y1, x2, y2]</bbox>',
    metrics={'crops': lambda action: action.kind == 'bbox'}))
