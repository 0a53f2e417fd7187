"""What happens after an action: search, crop, invalid action, end."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

from PIL import Image

from vrag_jax.actions.grammar import Action
from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.records import IMAGE_MARK
from vrag_jax.perception.frames import Frame
from vrag_jax.perception.image_ops import PixelLimits, check_box, crop_and_zoom, show_page
from vrag_jax.retrieval.hits import Hit
from vrag_jax.retrieval.search import PageSearch
from vrag_jax.rollout.episode import Episode

Hits = Sequence[Hit]
"""What a search has found, best first."""


@dataclasses.dataclass(frozen=True)
class Messages:
    """Texts of the observations.

    Attributes:
      page: around a page that a search brings, which `<image>` stands for.
      crop: around a region that was zoomed into, likewise.
      invalid: after an invalid action; may hold `{reason}`.
      nothing_new: after a search whose hits were all shown before.
      answer_now: before the last turn: in front of an image and its text, after any other
        text; '' says nothing.
    """

    page: str = IMAGE_MARK
    crop: str = IMAGE_MARK

    invalid: str = (
        'That was not a valid action ({reason}). Think inside <think> and </think>, then do '
        'exactly one thing: search with <search> query </search>, zoom into the last image with '
        '<bbox>[x1, y1, x2, y2]</bbox>, or answer with <answer> answer </answer>.'
    )
    nothing_new: str = 'The search found no page that you have not seen yet.'
    answer_now: str = 'This is your last turn: answer now inside <answer> and </answer>.'

    def __post_init__(self):
        for name in ('page', 'crop'):
            if getattr(self, name).count(IMAGE_MARK) != 1:
                raise ValueError(
                    f"{name} must hold '{IMAGE_MARK}' once, got {getattr(self, name)!r}")


@dataclasses.dataclass(frozen=True)
class EnvironmentConfig:
    """Rules of an episode.

    Attributes:
      max_turns: turns of the policy; the last one is asked for the answer.
      search_results: hits looked through for the first page not yet shown.
      search_chars: characters of a search query, at most; a longer one is an invalid
        action. A search service has a limit, too (`ServiceLimits.query_chars`).
      min_pixels, max_pixels: bounds of an image's area as the encoder sees it.
      two_step_sizes: whether boxes are in the frame of an intermediate size, as in the
        reference's code; see `PixelLimits.two_steps`.
      padding: encoder pixels by which a chosen box is widened on each side.
      allow_crop: whether `<bbox>` is an action at all.
      allow_image_index: whether `<bbox image="k">` may name an earlier image.
      page_cache: shown pages that are kept in memory.
    """

    max_turns: int = 5
    search_results: int = 10
    search_chars: int = 2048
    min_pixels: int = 256 * 28 * 28
    max_pixels: int = 512 * 28 * 28
    two_step_sizes: bool = False
    padding: int = 0
    allow_crop: bool = True
    allow_image_index: bool = False
    page_cache: int = 512

    def __post_init__(self):
        for name in ('max_turns', 'search_results', 'search_chars'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f'need 0 < min_pixels <= max_pixels, got {self.min_pixels} and {self.max_pixels}'
            )
        if self.padding < 0:
            raise ValueError(f'padding must not be negative, got {self.padding}')

    @property
    def limits(self) -> PixelLimits:
        return PixelLimits(self.min_pixels, self.max_pixels, two_steps=self.two_step_sizes)


@dataclasses.dataclass(frozen=True)
class Observation:
    """Answer of the environment to an action.

    Attributes:
      action: the action, 'invalid' with a reason if it could not be carried out.
      text: text shown back, before the image if there is one.
      view: image and frame shown back, or None.
      text_after: text after the image.
      retrieved: ids of the pages that a search brought.
      done: whether the episode is over.
    """

    action: Action
    text: str = ''
    view: tuple[Image.Image, Frame] | None = None
    text_after: str = ''
    retrieved: tuple[str, ...] = ()
    done: bool = False


class Environment:
    """Carries out the actions of many episodes at a time.

    Args:
      store: the pages.
      engine: search over them.
      config: the rules.
      messages: the texts.
    """

    def __init__(
        self,
        store: PageStore,
        engine: PageSearch,
        config: EnvironmentConfig,
        messages: Messages = Messages(),
    ):  # noqa: B008 (immutable)
        self.config = config
        self.messages = messages
        self._store = store
        self._engine = engine
        self._shown: OrderedDict[str, Future[tuple[Image.Image, Frame]]] = OrderedDict()
        self._lock = threading.Lock()

    def with_config(self, **changes) -> 'Environment':
        """Returns an environment over the same pages with other rules."""
        config = dataclasses.replace(self.config, **changes)
        return Environment(self._store, self._engine, config, self.messages)

    def search(self, actions: Sequence[Action]) -> list[Hits | None]:
        """Searches for all actions that ask for it, as one batch.

        Returns:
          The hits of each action, best first; None for one that is no search.
        """
        queries = [a.text for a in actions if a.kind == 'search']
        found = iter(self._engine.search(queries, self.config.search_results) if queries else [])
        return [next(found) if a.kind == 'search' else None for a in actions]

    def observe(self, episode: Episode, action: Action, hits: Hits | None) -> Observation:
        """Carries out an action.

        Args:
          episode: before the turn of this action is recorded.
          action: what to do.
          hits: of a search, from `search`; None for other actions.
        """
        if action.kind == 'answer':
            return Observation(action, done=True)
        if len(episode.turns) + 1 >= self.config.max_turns:
            return Observation(action, done=True)
        if hits is not None:
            observation = self._search(episode, action, hits)
        elif action.kind == 'bbox':
            observation = self._crop(episode, action)
        else:
            observation = self._invalid(action, action.reason)
        if len(episode.turns) + 2 == self.config.max_turns:
            parts = (self.messages.answer_now, observation.text)
            if observation.view is None:  # What has gone wrong comes first.
                parts = parts[::-1]
            text = ' '.join(part for part in parts if part)
            observation = dataclasses.replace(observation, text=text)
        return observation

    def _invalid(self, action: Action, reason: str) -> Observation:
        action = dataclasses.replace(action, kind='invalid', reason=reason)
        return Observation(action, text=self.messages.invalid.replace('{reason}', reason))

    def _search(self, episode: Episode, action: Action, hits: Hits) -> Observation:
        seen = set(episode.retrieved)
        fresh = next((hit.page_id for hit in hits if hit.page_id not in seen), None)
        if fresh is None:
            return Observation(action, text=self.messages.nothing_new)
        return self._shown_back(action, self.messages.page, self.page_view(fresh), (fresh,))

    def _crop(self, episode: Episode, action: Action) -> Observation:
        if not self.config.allow_crop:
            return self._invalid(action, 'zooming is not available')
        if not episode.images or action.box is None:
            return self._invalid(action, 'there is no image yet')
        if action.image is not None and action.image > len(episode.images):
            return self._invalid(action, f'there is no image {action.image}')
        frame = episode.images[(action.image or 0) - 1].frame
        reason = check_box(action.box, frame)
        if reason is not None:
            return self._invalid(action, reason)
        page = self._store.image(frame.page_id)
        view = crop_and_zoom(page, frame, action.box, self.config.limits, self.config.padding)
        return self._shown_back(action, self.messages.crop, view)

    def _shown_back(self, action: Action, text: str, view: tuple[Image.Image, Frame],
                    retrieved: tuple[str, ...] = ()) -> Observation:
        before, _, after = text.partition(IMAGE_MARK)
        return Observation(action, before, view, after, retrieved)

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
