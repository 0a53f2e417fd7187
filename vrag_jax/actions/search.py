"""`<search>query</search>`: shows the best page that has not been shown yet."""

from collections.abc import Sequence

from vrag_jax.actions.action import (
    Action,
    ActionContext,
    ActionType,
    EpisodeSoFar,
    InvalidAction,
    PageFound,
)
from vrag_jax.actions.observation import Observation
from vrag_jax.actions.registry import ACTIONS
from vrag_jax.actions.rules import ActionRules


def _parse(content: str, rules: ActionRules) -> Action:
    if not content:
        raise InvalidAction('the query is empty')
    if len(content) > rules.search_chars:
        raise InvalidAction(f'the query has {len(content)} characters; '
                            f'{rules.search_chars} are allowed')
    return Action('search', text=content)


def _prepare(context: ActionContext, actions: Sequence[Action]) -> Sequence[Sequence[PageFound]]:
    return context.search([action.text for action in actions])


def _run(context: ActionContext, episode: EpisodeSoFar, action: Action,
         hits: Sequence[PageFound]) -> Observation:
    seen = set(episode.retrieved)
    fresh = next((hit.page_id for hit in hits if hit.page_id not in seen), None)
    if fresh is None:
        return Observation(context.messages.nothing_new)
    return Observation.of_image(context.page_view(fresh), context.messages.page, (fresh,))


ACTIONS.add(ActionType(
    tag='search', parse=_parse, prepare=_prepare, run=_run, label='Search',
    prompt_line='<search>words to look for</search> shows the best page that you have not seen '
                'yet.',
    hint='search with <search> query </search>',
    metrics={'searches': lambda action: action.kind == 'search'}))
