"""Carries out the actions of finished turns in threads, while other episodes decode."""

import concurrent.futures
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

from vrag_jax.rollout.episode import Episode
from vrag_jax.rollout.world import World
from vrag_jax.sampling.scheduler import SampledTurn, Stream


class Observer:
    """Turns sampled turns into observations; a context manager.

    Args:
      world: where the episodes take place.
      max_length: most tokens of an episode.
    """

    def __init__(self, world: World, max_length: int):
        self._world = world
        self._max_length = max_length
        self._config = world.observing
        self._pool = ThreadPoolExecutor(
            world.observing.threads, thread_name_prefix='observe')
        # Jobs of each call to decode, oldest first: episodes and their future.
        self._calls: deque[list[tuple[list[Episode], Future]]] = deque()

    def __enter__(self) -> 'Observer':
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def busy(self) -> bool:
        """Whether there are episodes that have not been collected."""
        return any(self._calls)

    def submit(self, turns: Sequence[tuple[Stream, SampledTurn]]) -> None:
        """Starts to carry out the turns that a call to decode has ended.

        Searches go out as one batch; everything else is shared by the threads.
        """
        decode = self._world.chat.decode
        ended = [(cast(Episode, episode), decode(turn.tokens.tolist()), turn.stop)
                 for episode, turn in turns]
        searches = [turn for turn in ended if '<search>' in turn[1]]
        others = [turn for turn in ended if '<search>' not in turn[1]]
        size = -(-len(others) // self._config.threads)
        parts = [searches] + [others[i : i + size] for i in range(0, len(others), size or 1)]
        jobs = []
        for part in parts:
            if part:
                episodes, texts, stops = map(list, zip(*part, strict=True))
                jobs.append((episodes, self._pool.submit(
                    self._world.advance, episodes, texts, stops, self._max_length)))
        self._calls.append(jobs)

    def collect(self, wait: bool) -> list[Episode]:
        """Returns episodes whose observations are appended, or that are over.

        Args:
          wait: whether nothing can go on without one of them.
        """
        if self._config.in_order:
            # Those of the last call may take as long as the next call takes.
            ready: list[Episode] = []
            while len(self._calls) > 1 or (wait and self._calls and not ready):
                for episodes, future in self._calls.popleft():
                    future.result()
                    ready += episodes
            return ready
        jobs = [job for call in self._calls for job in call]
        self._calls.clear()
        if wait and jobs and not any(future.done() for _, future in jobs):
            concurrent.futures.wait(
                [future for _, future in jobs], return_when=concurrent.futures.FIRST_COMPLETED)
        ready = []
        for episodes, future in jobs:
            if future.done():
                future.result()
                ready += episodes
            else:
                self._calls.append([(episodes, future)])
        return ready
