"""Drives many episodes, turn by turn, with a policy or with an expert's texts."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.records import Question
from vrag_jax.data.sequences import ImagePreprocessor, global_rows
from vrag_jax.models.config import ModelConfig
from vrag_jax.models.parameters import Params
from vrag_jax.perception.actions import parse_action
from vrag_jax.rollout.environment import Environment, Observation
from vrag_jax.rollout.episode import Episode
from vrag_jax.rollout.trajectory import Trajectory, Turn
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.image_features import ImageFeatureCache
from vrag_jax.sampling.sampler import Chunk, DecodeRequest, Sampler


@dataclasses.dataclass(frozen=True)
class World:
    """Everything an episode needs apart from a policy.

    Attributes:
      environment: carries out actions.
      chat: tokenizer and turn delimiters.
      preprocess: images to patches.
      model_config: sizes and special ids of the policy.
    """

    environment: Environment
    chat: ChatFormat
    preprocess: ImagePreprocessor
    model_config: ModelConfig

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

    def advance(
        self,
        episodes: Sequence[Episode],
        texts: Sequence[str],
        ended: Sequence[bool],
        max_length: int,
    ) -> None:
        """Parses each episode's new turn, carries it out, appends what is observed.

        Args:
          episodes: episodes whose sampled tokens have just been appended.
          texts: their texts.
          ended: whether the policy has itself closed the turn.
          max_length: most tokens of an episode; one whose observation does not
            leave room for an answer is truncated.
        """
        allow_index = self.environment.config.allow_image_index
        actions = [parse_action(text, allow_index) for text in texts]
        observations = self.environment.step(episodes, actions)
        views = [o.view for o in observations if o.view is not None]
        processed = iter(self.preprocess([image for image, _ in views]))
        for episode, text, over, observation in zip(
            episodes, texts, ended, observations, strict=True
        ):
            shown = None
            if observation.view is not None:
                shown = (*observation.view, next(processed))
            self._record(episode, text, over, observation, shown, max_length)

    def _record(
        self,
        episode: Episode,
        text: str,
        ended: bool,
        observation: Observation,
        shown,
        max_length: int,
    ) -> None:
        ids: Sequence[int] = ()
        if not observation.done:
            tokens = shown[2].tokens if shown else None
            ids = self.chat.observation_ids(observation.text, tokens, ended=ended)
            if len(episode) + len(ids) >= max_length:
                # No room to go on: nothing of the observation is shown, so the
                # trajectory still ends with a token that was sampled.
                episode.truncated = True
                shown = None
        over = observation.done or episode.truncated
        episode.turns.append(
            Turn(
                text=text,
                action=observation.action,
                observation='' if over else observation.text,
                image=len(episode.images) if shown and not over else None,
                retrieved=() if over else observation.retrieved,
            )
        )
        episode.done = over
        if not over:
            episode.retrieved.extend(observation.retrieved)
            episode.append_observation(ids, shown)


def run_expert(
    world: World,
    questions: Sequence[Question],
    act: Callable[[Question, Episode], str],
    max_length: int,
) -> list[Trajectory]:
    """Lets an expert write every turn; its tokens count as sampled.

    Args:
      world: where the episodes take place.
      questions: one episode each.
      act: returns the text of the next turn.
      max_length: most tokens of an episode.

    Returns:
      Trajectories in the order of the questions, without log-probs.
    """
    episodes = [world.start(question) for question in questions]
    running = list(episodes)
    while running:
        texts = [act(episode.question, episode) for episode in running]
        for episode, text in zip(running, texts, strict=True):
            episode.append_text(world.chat.encode(text), sampled=True)
        world.advance(running, texts, [False] * len(running), max_length)
        running = [episode for episode in running if not episode.done]
    return [episode.finish() for episode in episodes]


def run_policy(
    world: World,
    sampler: Sampler,
    features: ImageFeatureCache,
    params: Params,
    questions: Sequence[Question],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    opening: Sequence[str] = (),
) -> list[Trajectory]:
    """Samples one episode a question, as many at a time as there are slots.

    Args:
      world: where the episodes take place.
      sampler: its slots are emptied first.
      features: encodes images, each once.
      params: the policy's parameters.
      questions: one episode each; repeat a question to sample a group.
      sampling: how tokens are drawn.
      seeds: seed of each episode.
      opening: texts of turns that are given to the policy instead of sampled, with
        `{question}`; they are not trained on.

    Returns:
      Trajectories in the order of the questions.
    """
    trajectories: list[Trajectory] = []
    slots = sampler.config.slots
    for start in range(0, len(questions), slots):
        wave = slice(start, start + slots)
        trajectories += _run_wave(
            world, sampler, features, params, questions[wave], sampling, seeds[wave], opening
        )
    return trajectories


def _run_wave(
    world, sampler, features, params, questions, sampling, seeds, opening
) -> list[Trajectory]:
    config = sampler.config
    episodes = [world.start(question) for question in questions]
    for episode in episodes:
        if len(episode) >= config.max_length:
            raise ValueError(
                f'question {episode.question.uid} has {len(episode)} prompt tokens, but '
                f'rollout.max_length is {config.max_length}'
            )
    for template in opening:
        begun = [episode for episode in episodes if not episode.done]
        texts = [template.format(question=e.question.query) for e in begun]
        for episode, text in zip(begun, texts, strict=True):
            episode.append_text(world.chat.encode(text))
        world.advance(begun, texts, [False] * len(begun), config.max_length)
    sampler.reset()
    sent = [0] * len(episodes)
    running = [row for row, episode in enumerate(episodes) if not episode.done]
    while running:
        images = [image for row in running for image in episodes[row].processed]
        rows = features.rows_of(params, images)
        chunks = {row: _chunk(episodes[row], sent[row], rows) for row in running}
        sampler.prefill(params, chunks, features.buffer)
        requests = {
            row: DecodeRequest(
                seeds[row], episodes[row].next_position, config.max_length - len(episodes[row])
            )
            for row in running
        }
        sampled = sampler.decode(params, requests, sampling)
        texts = []
        for row in running:
            turn = sampled[row]
            episodes[row].append_text(turn.tokens, turn.logprobs, sampled=True)
            sent[row] = len(episodes[row])
            texts.append(world.chat.decode(turn.tokens))
        ended = [sampled[row].stop == 'end_of_turn' for row in running]
        world.advance([episodes[row] for row in running], texts, ended, config.max_length)
        running = [row for row in running if not episodes[row].done]
    return [episode.finish() for episode in episodes]


def _chunk(episode: Episode, start: int, feature_rows: dict[str, int]) -> Chunk:
    """Tokens from `start` on, their image rows mapped into the feature buffer."""
    tokens, positions, image_index = episode.tail(start)
    return Chunk(tokens, positions, global_rows(image_index, episode.processed, feature_rows))


def episode_seed(*parts: object) -> int:
    """Returns a 32-bit seed from anything printable, equal on every machine."""
    digest = hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), 'little')
