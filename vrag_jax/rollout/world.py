"""The world of the episodes: starts them, and carries out what was sampled."""

import dataclasses
from collections.abc import Sequence

from vrag_jax.actions.grammar import Action, parse_action
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.records import Question
from vrag_jax.data.sequences import ImagePreprocessor
from vrag_jax.models.qwen2_5_vl.config import ModelConfig
from vrag_jax.rollout.environment import Environment, Hits, Observation
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
        episode = Episode(
            question,
            self.chat.prompt_text(question.query),
            self.model_config.image_token_id,
            self.model_config.vision.spatial_merge_size,
        )
        episode.append_text(self.chat.prompt_ids(question.query))
        return episode

    def blank(self) -> Episode:
        """Returns an episode without a question and without tokens."""
        return Episode(
            Question(uid='', query='', answer=''),
            '',
            self.model_config.image_token_id,
            self.model_config.vision.spatial_merge_size,
        )

    def search(self, texts: Sequence[str]) -> list[Hits | None]:
        """Searches for what turns ask, as one batch.

        Args:
          texts: of the turns.

        Returns:
          The hits of each; None for a turn that is no search.
        """
        return self.environment.search(self._actions(texts))

    def _actions(self, texts: Sequence[str]) -> list[Action]:
        rules = self.environment.config
        return [parse_action(text, rules.allow_image_index, rules.search_chars)
                for text in texts]

    def advance(
        self,
        episodes: Sequence[Episode],
        texts: Sequence[str],
        stops: Sequence[str],
        max_length: int,
        hits: Sequence[Hits | None] | None = None,
    ) -> None:
        """Parses each episode's new turn, carries it out, appends what is observed.

        Args:
          episodes: episodes whose sampled tokens have just been appended.
          texts: their texts.
          stops: why they ended, of `sampler.STOP_REASONS`; '' if they were not sampled.
          max_length: most tokens of an episode; one whose observation does not
            leave room for an answer is truncated.
          hits: what `search` has found for the texts; None if it is still to be asked.
        """
        actions = self._actions(texts)
        if hits is None:
            hits = self.environment.search(actions)
        observations = [
            self.environment.observe(episode, action, found)
            for episode, action, found in zip(episodes, actions, hits, strict=True)]
        views = [o.view for o in observations if o.view is not None]
        processed = iter(self.preprocess([image for image, _ in views]))
        for episode, text, stop, observation in zip(
            episodes, texts, stops, observations, strict=True
        ):
            shown = None
            if observation.view is not None:
                shown = (*observation.view, next(processed))
            self._record(episode, text, stop, observation, shown, max_length)

    def _record(
        self,
        episode: Episode,
        text: str,
        stop: str,
        observation: Observation,
        shown,
        max_length: int,
    ) -> None:
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
        elif stop == 'length' and observation.action.kind != 'answer':
            episode.truncated = True
        over = observation.done or episode.truncated
        episode.turns.append(
            Turn(
                text=text,
                action=observation.action,
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
