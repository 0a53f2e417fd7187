"""`<answer>text</answer>`: ends the episode."""

from vrag_jax.actions.action import Action, ActionContext, ActionType, EpisodeSoFar, InvalidAction
from vrag_jax.actions.observation import Observation
from vrag_jax.actions.registry import ACTIONS
from vrag_jax.actions.rules import ActionRules


def _parse(content: str, rules: ActionRules) -> Action:
    if not content:
        raise InvalidAction('the answer is empty')
    return Action('answer', text=content)


def _run(context: ActionContext, episode: EpisodeSoFar, action: Action) -> Observation:
    return Observation(done=True)


ACTIONS.add(ActionType(
    tag='answer', parse=_parse, run=_run, label='Answer',
    prompt_line='<answer>the answer, as short as it can be</answer> ends the task.',
    hint='answer with <answer> answer </answer>'))
