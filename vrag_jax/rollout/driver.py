"""Drives many episodes, turn by turn, with a policy or with an expert's texts."""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

from vrag_jax.data.records import Question
from vrag_jax.models.common.parameters import Params
from vrag_jax.rollout.episode import Episode
from vrag_jax.rollout.executor import ActionExecutor
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.rollout.world import World
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.image_features import ImageFeatureCache
from vrag_jax.sampling.sampler import Sampler
from vrag_jax.sampling.scheduler import Scheduler


def run_expert(
    world: World,
    questions: Sequence[Question],
    act: Callable[[Question, Episode], str],
    max_length: int,
) -> list[Trajectory]:
    """Lets an expert write every turn and end it; its tokens count as sampled.

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
            episode.append_text(world.chat.reply_ids(text), sampled=True)
        world.advance(world.read(running, texts, ['end_of_turn'] * len(running)), max_length)
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
    cancelled: Callable[[], bool] = lambda: False,
    keep: Callable[[Trajectory], Trajectory] = lambda trajectory: trajectory,
) -> list[Trajectory]:
    """Samples one episode a question, as many at a time as there is room for.

    Searches, crops and tokenisation run in threads while other episodes decode.

    Args:
      world: where the episodes take place.
      sampler: it is emptied first.
      features: encodes images, each once.
      params: the policy's parameters.
      questions: one episode each; equal questions in a row form a group, whose prompt is
        prefilled once.
      sampling: how tokens are drawn.
      seeds: seed of each episode.
      opening: texts of turns that are given to the policy instead of sampled, with
        `{question}`; they are not trained on.
      cancelled: asked between calls to the sampler whether to give up.
      keep: reduces a trajectory to what is kept of it, as soon as it is over. An episode has
        no images before it starts, so the sampler's cache bounds how many are alive.

    Returns:
      Trajectories in the order of the questions.

    Raises:
      ValueError: if a prompt does not fit into the sampler; names the question.
      CancelledError: if it is to give up.
    """
    max_length = sampler.config.max_length
    episodes = [world.start(question) for question in questions]
    for episode in episodes:
        if len(episode) >= max_length:
            raise ValueError(
                f'question {episode.question.uid} has {len(episode)} prompt tokens, but '
                f'sampler.max_length is {max_length}')
    scheduler = Scheduler(sampler, features, params, sampling)
    place_of = {id(episode): place for place, episode in enumerate(episodes)}
    running: list[Episode | None] = list(episodes)
    played: dict[int, Trajectory] = {}
    same_prompt = lambda e: (e.question.uid, e.tail(0)[0].tobytes())  # noqa: E731
    unopened = deque(list(group) for _, group in itertools.groupby(episodes, key=same_prompt))
    del episodes  # So that finished ones are freed.

    def over(episode: Episode) -> None:
        place = place_of.pop(id(episode))
        played[place], running[place] = keep(episode.finish()), None

    def begin() -> None:
        """Starts episodes until more are waiting than the sampler has slots."""
        chosen: list[Episode] = []
        while unopened and scheduler.waiting + len(chosen) <= sampler.config.slots:
            chosen += unopened.popleft()
        for template in opening:
            begun = [episode for episode in chosen if not episode.done]
            texts = [template.format(question=e.question.query) for e in begun]
            for episode, text in zip(begun, texts, strict=True):
                episode.append_text(world.chat.encode(text))
            world.advance(world.read(begun, texts, [''] * len(begun)), max_length)
        for episode in chosen:
            if episode.done:
                over(episode)
        started = [episode for episode in chosen if not episode.done]
        for _, members in itertools.groupby(started, key=same_prompt):
            group = list(members)
            scheduler.add(group, [seeds[place_of[id(episode)]] for episode in group])

    begin()
    with ActionExecutor(world, max_length) as executor:
        while unopened or not scheduler.idle or executor.busy:
            if cancelled():
                raise CancelledError('the rollout was given up')
            for episode in executor.collect(wait=scheduler.idle):
                if episode.done:
                    scheduler.finish(episode)
                    over(episode)
                else:
                    scheduler.resume(episode)
            begin()
            executor.submit(scheduler.step())
    return [played[place] for place in range(len(running))]


def episode_seed(*parts: object) -> int:
    """Returns a 32-bit seed from anything printable, equal on every machine."""
    digest = hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), 'little')
