"""Starts episodes and advances them by sampled turns."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from vrag_jax.actions.action import Action
from vrag_jax.actions.observation import Observation
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.records import Question
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import ImagePreprocessor, ProcessedImage
from vrag_jax.perception.frames import Frame
from vrag_jax.rollout.environment import Environment
from vrag_jax.rollout.episode import Episode
from vrag_jax.rollout.trajectory import Turn


@dataclasses.dataclass(frozen=True)
class ObservingConfig:
    """How actions are carried out beside decoding.

    Attributes:
      threads: that search, crop and tokenise.
      in_order: whether a call to decode waits for the observations of the call before
        the last. Episodes then meet in the same calls in every run, and a run repeats
        bit by bit; without it none waits for a slow search of another.
      patch_cache_bytes: patches of images that are kept in the host's memory, those used
        last, so that episodes that look at the same page share them.
    """

    threads: int = 4
    in_order: bool = True
    patch_cache_bytes: int = 1 << 30

    def __post_init__(self):
        if self.threads < 1:
            raise ValueError(f'threads must be positive, got {self.threads}')
        if self.patch_cache_bytes < 0:
            raise ValueError(
                f'patch_cache_bytes must not be negative, got {self.patch_cache_bytes}')


class WrittenTurn(NamedTuple):
    """A turn that has been written and not yet carried out.

    Attributes:
      episode: to which its tokens have just been appended.
      text: what was written.
      stop: why it ended, of `sampler.STOP_REASONS`; '' if it was not sampled.
      action: what was parsed from the text.
    """

    episode: Episode
    text: str
    stop: str
    action: Action


@dataclasses.dataclass(frozen=True)
class World:
    """Everything an episode needs apart from a policy.

    Attributes:
      environment: carries out actions.
      chat: tokenizer and turn delimiters.
      preprocess: images to patches.
      model_config: sizes and special ids of the policy.
      observing: how actions are carried out beside decoding.
    """

    environment: Environment
    chat: ChatFormat
    preprocess: ImagePreprocessor
    model_config: ModelConfig
    observing: ObservingConfig = ObservingConfig()

    def start(self, question: Question) -> Episode:
        """Returns an episode that holds the question's turn."""
        episode = Episode(question, self.chat.prompt_text(question.query), self.model_config)
        episode.append_text(self.chat.prompt_ids(question.query))
        return episode

    def blank(self) -> Episode:
        """Returns an episode without a question and without tokens."""
        return Episode(Question(uid='', query='', answer=''), '', self.model_config)

    def read(self, episodes: Sequence[Episode], texts: Sequence[str], stops: Sequence[str]
             ) -> list[WrittenTurn]:
        """Returns the turns that episodes have just written; each is parsed here, and only here.

        Args:
          episodes, texts, stops: of the turns, as in `WrittenTurn`.
        """
        return [WrittenTurn(episode, text, stop, self.environment.parse(text))
                for episode, text, stop in zip(episodes, texts, stops, strict=True)]

    def prepare(self, turns: Sequence[WrittenTurn]) -> list[Any]:
        """Runs the batched steps of the turns' actions, see `Environment.prepare`."""
        return self.environment.prepare([turn.action for turn in turns])

    def advance(self, turns: Sequence[WrittenTurn], max_length: int,
                prepared: Sequence[Any] | None = None) -> None:
        """Carries out each episode's new turn and appends what is observed.

        Args:
          turns: one an episode.
          max_length: most tokens of an episode; one whose observation does not
            leave room for an answer is truncated.
          prepared: the results of `prepare` for the turns; None if it has not been called.
        """
        if prepared is None:
            prepared = self.prepare(turns)
        observed = [self.environment.observe(turn.episode, turn.action, results)
                    for turn, results in zip(turns, prepared, strict=True)]
        views = [o.view for _, o in observed if o.view is not None]
        processed = iter(self.preprocess([image for image, _ in views]))
        for turn, (action, observation) in zip(turns, observed, strict=True):
            shown = None
            if observation.view is not None:
                shown = (*observation.view, next(processed))
            self._record(turn._replace(action=action), observation, shown, max_length)

    def _record(
        self,
        turn: WrittenTurn,
        observation: Observation,
        shown: tuple[Image.Image, Frame, ProcessedImage] | None,
        max_length: int,
    ) -> None:
        episode = turn.episode
        ids: Sequence[int] = ()
        if not observation.done:
            tokens = shown[2].tokens if shown else None
            ids = self.chat.observation_ids(
                observation.text, tokens, observation.text_after,
                ended=episode.last_token == self.chat.end_of_turn_id)
            if len(episode) + len(ids) >= max_length:
                # No room to go on: nothing of the observation is shown, so the
                # trajectory still ends with a token that was sampled.
                episode.truncated = True
                shown = None
        elif turn.stop == 'length' and turn.action.kind != 'answer':
            episode.truncated = True
        over = observation.done or episode.truncated
        episode.turns.append(
            Turn(
                text=turn.text,
                action=turn.action,
                observation='' if over else ' '.join(
                    t for t in (observation.text, observation.text_after) if t),
                image=len(episode.images) if shown and not over else None,
                retrieved=() if over else observation.retrieved,
            )
        )
        episode.done = over
        if not over:
            episode.retrieved.extend(observation.retrieved)
            episode.append_observation(ids, shown)
