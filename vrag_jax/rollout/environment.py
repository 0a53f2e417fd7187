"""The environment of episodes: their rules, and the answer to every action."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Any

from PIL import Image

from vrag_jax.actions.action import INVALID, Action, ActionType, InvalidAction
from vrag_jax.actions.grammar import parse_action
from vrag_jax.actions.observation import Messages, Observation
from vrag_jax.actions.registry import get_actions, hints
from vrag_jax.actions.rules import ActionRules
from vrag_jax.corpus.pages import PageStore
from vrag_jax.perception.frames import Frame
from vrag_jax.perception.image_ops import show_page
from vrag_jax.retrieval.hits import Hit
from vrag_jax.retrieval.page_search import PageSearch
from vrag_jax.rollout.episode import Episode


@dataclasses.dataclass(frozen=True)
class EnvironmentConfig(ActionRules):
    """Rules of an episode, with those that its actions follow.

    Attributes:
      max_turns: turns of the policy; the last one is asked for the answer.
      page_cache: shown pages that are kept in memory.
    """

    max_turns: int = 5
    page_cache: int = 512

    def __post_init__(self):
        super().__post_init__()
        if self.max_turns < 1:
            raise ValueError(f'max_turns must be positive, got {self.max_turns}')


class Environment:
    """Answers the actions of many episodes; it is the `ActionContext` of what they do.

    Args:
      store: the pages.
      engine: search over them.
      config: the rules.
      messages: the texts.
      actions: what may be written; None takes the default ones.
      disabled: tags of actions that are part of the grammar, so that they end a turn, but
        cannot be carried out.
    """

    def __init__(
        self,
        store: PageStore,
        engine: PageSearch,
        config: EnvironmentConfig,
        messages: Messages = Messages(),  # noqa: B008 (immutable)
        actions: Sequence[ActionType] | None = None,
        disabled: Collection[str] = (),
    ):
        self.config = config
        self.messages = messages
        self.actions = get_actions() if actions is None else tuple(actions)
        self.disabled = frozenset(disabled)
        self._enabled = {a.tag: a for a in self.actions if a.tag not in self.disabled}
        self._store = store
        self._engine = engine
        self._shown: OrderedDict[str, Future[tuple[Image.Image, Frame]]] = OrderedDict()
        self._lock = threading.Lock()

    def with_config(self, **changes) -> 'Environment':
        """Returns an environment over the same pages with other rules."""
        config = dataclasses.replace(self.config, **changes)
        return Environment(self._store, self._engine, config, self.messages, self.actions,
                           self.disabled)

    def parse(self, text: str) -> Action:
        """Returns the action of a turn."""
        return parse_action(text, self.actions, self.config)

    def is_prepared(self, action: Action) -> bool:
        """Whether an action has a batched step, `ActionType.prepare`."""
        kind = self._enabled.get(action.kind)
        return kind is not None and kind.prepare is not None

    def prepare(self, actions: Sequence[Action]) -> list[Any]:
        """Runs the batched steps of actions, such as searching: one call for each type.

        Returns:
          The result for each action, None for one without a batched step.
        """
        results: list[Any] = [None] * len(actions)
        for tag, kind in self._enabled.items():
            places = [i for i, action in enumerate(actions) if action.kind == tag]
            if places and kind.prepare is not None:
                done = kind.prepare(self, [actions[i] for i in places])
                for place, result in zip(places, done, strict=True):
                    results[place] = result
        return results

    def observe(self, episode: Episode, action: Action, prepared: Any = None
                ) -> tuple[Action, Observation]:
        """Carries out an action.

        Args:
          episode: before the turn of this action is recorded.
          action: what to do.
          prepared: its result of `prepare`.

        Returns:
          The action, invalid with a reason if it could not be carried out, and its observation.
        """
        if len(episode.turns) + 1 >= self.config.max_turns:
            return action, Observation(done=True)
        try:
            observation = self._run(episode, action, prepared)
        except InvalidAction as error:
            action = dataclasses.replace(action, kind=INVALID, reason=str(error))
            observation = Observation(self.invalid_text(action.reason))
        if len(episode.turns) + 2 == self.config.max_turns and not observation.done:
            parts = (self.messages.answer_now, observation.text)
            if observation.view is None:  # What has gone wrong comes first.
                parts = parts[::-1]
            text = ' '.join(part for part in parts if part)
            observation = dataclasses.replace(observation, text=text)
        return action, observation

    def _run(self, episode: Episode, action: Action, prepared: Any) -> Observation:
        if action.kind == INVALID:
            raise InvalidAction(action.reason)
        if action.kind in self.disabled:
            raise InvalidAction(f'<{action.kind}> is not available')
        kind = self._enabled[action.kind]
        results = () if kind.prepare is None else (prepared,)
        return kind.run(self, episode, action, *results)

    def invalid_text(self, reason: str) -> str:
        """Returns the message after an action that is invalid for some reason."""
        can_be_done = hints(tuple(self._enabled.values()))
        return self.messages.invalid.replace('{actions}', can_be_done).replace('{reason}', reason)

    def search(self, queries: Sequence[str]) -> list[list[Hit]]:
        """Returns the hits of each query, best first."""
        return self._engine.search(queries, self.config.search_results)

    def page_image(self, page_id: str) -> Image.Image:
        """Returns a page at its full resolution."""
        return self._store.image(page_id)

    def page_view(self, page_id: str) -> tuple[Image.Image, Frame]:
        """Returns a page at the size at which it is shown; recent ones are kept."""
        with self._lock:
            shown = self._shown.get(page_id)
            if asked := shown is None:
                # Those who ask for it meanwhile wait for this one.
                shown = self._shown[page_id] = Future()
                while len(self._shown) > max(1, self.config.page_cache):
                    self._shown.popitem(last=False)
            else:
                self._shown.move_to_end(page_id)
        if asked:
            try:
                page = self._store.image(page_id)
                shown.set_result(show_page(page, page_id, self.config.limits))
            except BaseException as error:
                with self._lock:
                    self._shown.pop(page_id, None)
                shown.set_exception(error)
        return shown.result()
