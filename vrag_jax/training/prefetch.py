"""Prefetching: a thread pool prepares the items of the next steps during the current one."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar('T')


class Ahead(Generic[T]):
    """Makes the items of steps in threads, in order; a context manager.

    Whatever the threads, a step gets the same items in the same order. At most the items of
    the step that is asked for and of `steps` more are held.

    Args:
      items: made when they are asked for, by several threads at a time.
      order: indices of a step's items.
      total: steps.
      threads: that make them.
      steps: how many steps ahead of the one asked for.
    """

    def __init__(self, items: Sequence[T], order: Callable[[int], Iterable[int]], total: int,
                 threads: int, steps: int):
        self._items, self._order, self._total, self._steps = items, order, total, steps
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix='prepare')
        # Those of the steps under way, the earliest first.
        self._under_way: deque[tuple[int, list[Future[T]]]] = deque()

    def __enter__(self) -> 'Ahead[T]':
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> list[T]:
        """Returns a step's items; steps are asked for one after the other, from any one.

        Raises:
          Exception: what was raised where one of the step's own items was made.
        """
        begun = self._under_way[-1][0] + 1 if self._under_way else step
        for number in range(begun, min(step + self._steps + 1, self._total)):
            self._under_way.append((number, [
                self._pool.submit(self._items.__getitem__, i) for i in self._order(number)]))
        number, futures = self._under_way.popleft()
        if number != step:
            raise ValueError(f'step {number} comes next, not {step}')
        return [future.result() for future in futures]
