"""`<rotate>90</rotate>`: turns the last image clockwise, by 90, 180 or 270 degrees.

What it showed is cut anew out of the full-resolution page, so a box on the turned image is
in the turned image's pixels and still finds its place on the page.
"""

from vrag_jax.actions.action import Action, ActionContext, ActionType, EpisodeSoFar, InvalidAction
from vrag_jax.actions.observation import Observation
from vrag_jax.actions.registry import ACTIONS
from vrag_jax.actions.rules import ActionRules
from vrag_jax.perception.affine import rotation
from vrag_jax.perception.image_ops import turn


def _parse(content: str, rules: ActionRules) -> Action:
    if content not in ('90', '180', '270'):
        raise InvalidAction('the angle must be 90, 180 or 270')
    return Action('rotate', text=content)


def _run(context: ActionContext, episode: EpisodeSoFar, action: Action) -> Observation:
    if not episode.images:
        raise InvalidAction('there is no image yet')
    frame = episode.images[-1].frame
    return Observation.of_image(turn(
        context.page_image(frame.page_id), frame, rotation(int(action.text)),
        context.config.limits))


ACTIONS.add(ActionType(
    tag='rotate', parse=_parse, run=_run, label='Rotate', used='rotated',
    prompt_line='<rotate>90</rotate> turns the last image clockwise, by 90, 180 or 270 degrees.',
    hint='turn the last image clockwise with <rotate>90</rotate>',
    metrics={'rotations': lambda action: action.kind == 'rotate'}))
