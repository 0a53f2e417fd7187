"""Carries out the actions of finished turns in threads, while other episodes decode."""

import concurrent.futures
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, cast

from vrag_jax.rollout.environment import Hits
from vrag_jax.rollout.episode import Episode
from vrag_jax.rollout.world import World
from vrag_jax.sampling.scheduler import SampledTurn, Stream


class _Ended(NamedTuple):
    """A turn that has been sampled: whose, its text, why it stopped."""

    episode: Episode
    text: str
    stop: str


Job = tuple[list[_Ended], Future]
"""Turns that a thread carries out one after the other, and when they are done."""


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
        # Jobs of each call to decode, oldest first.
        self._calls: deque[list[Job]] = deque()

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

        Searches go out as one batch; everything else is shared by the threads, and so is
        what the searches have found.
        """
        decode = self._world.chat.decode
        ended = [_Ended(cast(Episode, episode), decode(turn.tokens.tolist()), turn.stop)
                 for episode, turn in turns]
        searches = self._parts([turn for turn in ended if '<search>' in turn.text])
        others = self._parts([turn for turn in ended if '<search>' not in turn.text])
        jobs: list[Job] = [(part, Future()) for part in searches]
        if jobs:
            self._pool.submit(self._search, list(jobs))
        jobs += [(part, self._pool.submit(self._advance, part)) for part in others]
        self._calls.append(jobs)

    def _parts(self, turns: Sequence[_Ended]) -> list[list[_Ended]]:
        """Splits turns into as many parts as there are threads."""
        size = max(1, -(-len(turns) // self._config.threads))
        return [list(turns[i : i + size]) for i in range(0, len(turns), size)]

    def _advance(self, part: Sequence[_Ended], hits: Sequence[Hits | None] | None = None
                 ) -> None:
        self._world.advance([turn.episode for turn in part], [turn.text for turn in part],
                            [turn.stop for turn in part], self._max_length, hits)

    def _search(self, jobs: Sequence[Job]) -> None:
        """Asks for all at once; then each part goes on in a thread."""
        waiting = deque(jobs)
        try:
            found = iter(self._world.search([turn.text for part, _ in jobs for turn in part]))
            while waiting:
                part, future = waiting[0]
                self._pool.submit(
                    self._carry_on, part, [next(found) for _ in part], future)
                waiting.popleft()
        except BaseException as error:  # Also that no more threads are to be had.
            for _, future in waiting:
                future.set_exception(error)

    def _carry_on(self, part: Sequence[_Ended], hits: Sequence[Hits | None], future: Future
                  ) -> None:
        try:
            self._advance(part, hits)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    def collect(self, wait: bool) -> list[Episode]:
        """Returns episodes whose observations are appended, or that are over.

        Args:
          wait: whether nothing can go on without one of them.
        """
        if self._config.in_order:
            # Those of the last call may take as long as the next call takes.
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
