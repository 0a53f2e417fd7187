"""Executes the actions of finished turns in threads while other episodes decode."""

import concurrent.futures
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from vrag_jax.rollout.episode import Episode
from vrag_jax.rollout.world import World, WrittenTurn
from vrag_jax.sampling.scheduler import SampledTurn, Stream

Job = tuple[list[WrittenTurn], Future]
"""Turns that one thread carries out in order, and the future that is set when they are done."""


class ActionExecutor:
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
        # Jobs of each call to decode, oldest first.
        self._calls: deque[list[Job]] = deque()

    def __enter__(self) -> 'ActionExecutor':
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def busy(self) -> bool:
        """Whether there are episodes that have not been collected."""
        return any(self._calls)

    def submit(self, sampled: Sequence[tuple[Stream, SampledTurn]]) -> None:
        """Starts to carry out the turns that a call to decode has ended.

        What is prepared for many, such as searches, goes out as one batch; everything else
        is shared by the threads, and so is what the batch has brought.
        """
        decode = self._world.chat.decode
        turns = self._world.read(
            [cast(Episode, episode) for episode, _ in sampled],
            [decode(turn.tokens.tolist()) for _, turn in sampled],
            [turn.stop for _, turn in sampled])
        is_prepared = self._world.environment.is_prepared
        batched = self._parts([turn for turn in turns if is_prepared(turn.action)])
        others = self._parts([turn for turn in turns if not is_prepared(turn.action)])
        jobs: list[Job] = [(part, Future()) for part in batched]
        if jobs:
            self._pool.submit(self._prepare, list(jobs))
        jobs += [(part, self._pool.submit(self._world.advance, part, self._max_length))
                 for part in others]
        self._calls.append(jobs)

    def _parts(self, turns: Sequence[WrittenTurn]) -> list[list[WrittenTurn]]:
        """Splits turns into as many parts as there are threads."""
        size = max(1, -(-len(turns) // self._config.threads))
        return [list(turns[i : i + size]) for i in range(0, len(turns), size)]

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """Prepares all at once; then each part goes on in a thread."""
        waiting = deque(jobs)
        try:
            prepared = iter(self._world.prepare([turn for part, _ in jobs for turn in part]))
            while waiting:
                part, future = waiting[0]
                self._pool.submit(
                    self._carry_on, part, [next(prepared) for _ in part], future)
                waiting.popleft()
        except BaseException as error:  # Also that no more threads are to be had.
            for _, future in waiting:
                future.set_exception(error)

    def _carry_on(self, part: Sequence[WrittenTurn], prepared: Sequence[Any], future: Future
                  ) -> None:
        try:
            self._world.advance(part, self._max_length, prepared)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    def collect(self, wait: bool) -> list[Episode]:
        """Returns episodes whose observations are appended, or that are over.

        Args:
          wait: whether to wait until there is at least one.
        """
        if self._config.in_order:
            # The observations of the last call have until the next call to be ready.
            ready: list[Episode] = []
            while len(self._calls) > 1 or (wait and self._calls and not ready):
                for part, future in self._calls.popleft():
                    future.result()
                    ready += [turn.episode for turn in part]
            return ready
        jobs = [job for call in self._calls for job in call]
        self._calls.clear()
        if wait and jobs and not any(future.done() for _, future in jobs):
            concurrent.futures.wait(
                [future for _, future in jobs], return_when=concurrent.futures.FIRST_COMPLETED)
        ready = []
        for part, future in jobs:
            if future.done():
                future.result()
                ready += [turn.episode for turn in part]
            else:
                self._calls.append([(part, future)])
        return ready
