"""The table of actions, by tag; a run chooses some of them with `config.actions`.

Every module of this package that defines an action adds it. A config file, or a module
that it imports, may add others before it names them:

    from vrag_jax.actions.registry import ACTIONS

    ACTIONS.add(ActionType(tag='flip', parse=..., run=..., ...))
"""

import functools
import importlib
import itertools
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.actions.action import INVALID, Action, ActionType

DEFAULT_ACTIONS = ('search', 'bbox', 'answer')
# Vanilla RAG searches, and every answer is judged.
REQUIRED = ('search', 'answer')


class ActionTable(dict[str, ActionType]):
    """Actions by tag."""

    def add(self, action: ActionType) -> ActionType:
        """Adds an action; its tag must not be taken."""
        if action.tag in self:
            raise ValueError(f'actions: {action.tag!r} is taken')
        self[action.tag] = action
        return action


ACTIONS = ActionTable()


@functools.cache
def _load() -> None:
    """Imports the modules of this package, which add their actions."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f'{__package__}.{module.name}')


def get_actions(tags: Sequence[str] = DEFAULT_ACTIONS) -> tuple[ActionType, ...]:
    """Returns the actions of a run, in the order of their tags.

    Raises:
      ValueError: if there is no such action, one is named twice, or 'search' or 'answer' is
        missing.
    """
    _load()
    for tag in tags:
        if tag not in ACTIONS:
            raise ValueError(f'must be some of {sorted(ACTIONS)}, got {tag!r}')
    if len(set(tags)) < len(tags) or not set(REQUIRED) <= set(tags):
        raise ValueError(f'must hold {REQUIRED} and no action twice, got {tuple(tags)}')
    return tuple(ACTIONS[tag] for tag in tags)


def usage_figures(methods: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the names of those figures of results that are an action's `used`, in order."""
    _load()
    used = {action.used for action in ACTIONS.values()}
    return [name for name in dict.fromkeys(itertools.chain(*methods)) if name in used]


def label(kind: str) -> str:
    """Returns the heading of a turn in reports, also of a kind that is not known here."""
    _load()
    if kind == INVALID:
        return 'Invalid action'
    return ACTIONS[kind].label if kind in ACTIONS else kind.capitalize()


def prompt_lines(actions: Sequence[ActionType]) -> str:
    """Returns what a prompt says for `{actions}`, a line each."""
    return '\n'.join(f'- {action.prompt_line}' for action in actions)


def hints(actions: Sequence[ActionType]) -> str:
    """Returns what can be done, in one sentence: 'do this, do that, or do something else'."""
    *others, last = [action.hint for action in actions]
    return f'{", ".join(others)}{"," if len(others) > 1 else ""} or {last}' if others else last


def action_metrics(actions: Sequence[ActionType], taken: Sequence[Action]) -> dict[str, float]:
    """Returns the figures of the actions, each a mean over the turns of a rollout.

    Args:
      actions: of the run.
      taken: the actions of all turns.
    """
    return {name: float(np.mean([figure(each) for each in taken]))
            for action in actions for name, figure in action.metrics.items()}
