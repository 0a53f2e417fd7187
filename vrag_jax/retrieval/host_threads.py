"""Splits work on many queries over the host's cores."""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar('Item')
Result = TypeVar('Result')

_LOCK = threading.Lock()


def in_pieces(function: Callable[[Sequence[Item]], Result], items: Sequence[Item],
              size: int = 128) -> list[Result]:
    """Calls a function with pieces of `size` items, in as many threads as there are cores.

    For functions that are mostly products of matrices, sparse or not: these let other threads
    run. BLAS gets one thread while they do, for its threads and these would wait for each
    other; callers in several threads take turns.

    Args:
      function: of a piece.
      items: all of them.
      size: of a piece; so few that their results fit into a core's cache.

    Returns:
      The results in order.
    """
    pieces = [items[start:start + size] for start in range(0, len(items), size)]
    if len(pieces) < 2 or _cores() < 2:
        return [function(piece) for piece in pieces]
    with _LOCK, _libraries().limit(limits=1, user_api='blas'):
        return list(_pool().map(function, pieces))


@functools.cache
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), 'pieces')


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
