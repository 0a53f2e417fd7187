"""The grammar of the policy's turns: thoughts, then one action.

A turn is read from left to right. Outside any tag, `<think>` and the tags of the run's
actions open a tag; inside a tag only its own closing tag means anything. The action is the
first tag other than `<think>` that is closed, and what follows it is ignored, because
generation stops there. `stopping` builds the same reading as an automaton over token ids.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from vrag_jax.actions.action import INVALID, THINK, Action, ActionType, InvalidAction
from vrag_jax.actions.registry import DEFAULT_ACTIONS, get_actions
from vrag_jax.actions.rules import ActionRules


def tag_tokens(tags: Sequence[str] = DEFAULT_ACTIONS) -> tuple[str, ...]:
    """Returns all opening and closing tags of a grammar, e.g. to make each of them one token."""
    return tuple(token for tag in (THINK, *tags) for token in (f'<{tag}>', f'</{tag}>'))


@functools.lru_cache
def _opening(actions: tuple[ActionType, ...]) -> re.Pattern:
    """An opening tag: its name is the first group, or the second where attributes may follow."""
    plain = '|'.join([THINK, *(a.tag for a in actions if not a.attributes)])
    # What can have attributes is opened by a space as well.
    with_attributes = '|'.join(a.tag for a in actions if a.attributes)
    return re.compile(f'<(?:({plain})>' + (
        f'|({with_attributes})(?=[> ]))' if with_attributes else '|((?!)))'))


def parse_action(text: str, actions: Sequence[ActionType] | None = None,
                 rules: ActionRules = ActionRules()) -> Action:  # noqa: B008 (immutable)
    """Reads one turn of the policy; never raises.

    Args:
      text: the policy's turn, any string.
      actions: of the grammar; None takes `DEFAULT_ACTIONS`.
      rules: that the actions follow.

    Returns:
      The first closed action outside `<think>`, or an invalid one that says why.
    """
    actions = get_actions() if actions is None else tuple(actions)
    opening_tag = _opening(actions)
    thoughts: list[str] = []
    position = 0
    while opening := opening_tag.search(text, position):
        tag = opening[1] or opening[2]
        end = text.find(f'</{tag}>', opening.end())
        if end < 0:
            return _invalid(thoughts, f'<{tag}> is not closed', opening.start())
        inside = text[opening.end():end]
        if tag != THINK:
            kind = next(action for action in actions if action.tag == tag)
            try:
                action = _parse_inside(kind, inside, rules)
            except InvalidAction as error:
                return _invalid(thoughts, str(error), opening.start())
            return dataclasses.replace(
                action, thought='\n'.join(thoughts), start=opening.start())
        thoughts.append(inside.strip())
        position = end + len(f'</{tag}>')
    return _invalid(thoughts, 'there is no action', len(text))


def _parse_inside(action: ActionType, inside: str, rules: ActionRules) -> Action:
    if not action.attributes:
        return action.parse(inside.strip(), rules)
    attributes, bracket, content = inside.partition('>')
    if not bracket:
        raise InvalidAction(f'<{action.tag} is not followed by >')
    return action.parse(content.strip(), rules, attributes.strip())


def _invalid(thoughts: list[str], reason: str, start: int) -> Action:
    return Action(INVALID, thought='\n'.join(thoughts), reason=reason, start=start)
