"""An action from outside the package, in one file: `<flip>left-right</flip>`."""

from vrag_jax.actions.action import Action, ActionType, InvalidAction
from vrag_jax.actions.observation import Observation
from vrag_jax.actions.registry import ACTIONS
from vrag_jax.perception.affine import Affine
from vrag_jax.perception.image_ops import turn

SIDES = {'left-right': Affine(a=-1.0), 'top-bottom': Affine(e=-1.0)}


def _parse(content, rules):
    if content not in SIDES:
        raise InvalidAction(f'it must be one of {sorted(SIDES)}')
    return Action('flip', text=content)


def _run(context, episode, action):
    if not episode.images:
        raise InvalidAction('there is no image yet')
    frame = episode.images[-1].frame
    page = context.page_image(frame.page_id)
    return Observation.of_image(
        turn(page, frame, SIDES[action.text], context.config.limits), 'Flipped: <image>')


ACTIONS.add(ActionType(
    tag='flip', parse=_parse, run=_run, label='Flip', used='flipped',
    prompt_line='<flip>left-right</flip> or <flip>top-bottom</flip> mirrors the last image.',
    hint='mirror the last image with <flip>left-right</flip>',
    metrics={'flips': lambda action: action.kind == 'flip'}))
