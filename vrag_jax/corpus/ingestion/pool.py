"""A pool of worker processes that outlives the death of any of them."""

import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import vrag_jax
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig

_LONGEST_WAIT_S = 3600.0  # Of the selector, which does not take all times.
_PACKAGE_ROOT = Path(vrag_jax.__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class ReadingTask:
    """What a worker is to do: the fields of its request, and what it is for.

    Attributes:
      request: 'task', 'document' and what else the task takes.
      key: handed back with the reply.
    """

    request: dict[str, Any]
    key: Any


class WorkerPool:
    """Runs tasks in processes, one at a time in each; a context manager.

    Args:
      config: of the ingestion; says how many processes.
      pass_fds: open file descriptors that the processes inherit.
    """

    def __init__(self, config: IngestConfig, pass_fds: tuple[int, ...] = ()):
        self._config = config
        self._pass_fds = pass_fds
        self._workers: list[_Process] = []
        self.size = config.workers or len(os.sched_getaffinity(0)
                                          if hasattr(os, 'sched_getaffinity')
                                          else range(os.cpu_count() or 1))

    def __enter__(self) -> 'WorkerPool':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, next_task: Callable[[], ReadingTask | None]
            ) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Runs tasks until there are none; yields (key, reply) as they end.

        Args:
          next_task: returns what to do next; None if there is nothing now. It is asked
            again after each reply, which may have made a task possible.

        Raises:
          ImportError: if a package that an extra brings is not there.
        """
        waiting: ReadingTask | None = None
        with selectors.DefaultSelector() as selector:
            while True:
                for number in range(self.size):
                    waiting = waiting or next_task()
                    if waiting is None:
                        break
                    if number == len(self._workers):
                        self._workers.append(_Process(self._config, self._pass_fds))
                    worker = self._workers[number]
                    if worker.task is None:
                        worker.start(waiting)
                        selector.register(worker.replies, selectors.EVENT_READ, worker)
                        waiting = None
                busy = [worker for worker in self._workers if worker.task is not None]
                if not busy:
                    return
                first = min(worker.started for worker in busy) + self._config.timeout_s
                for key, _ in selector.select(
                        min(max(first - time.monotonic(), 0.0), _LONGEST_WAIT_S)):
                    yield self._reply(key.data, selector)
                for worker in busy:
                    late = time.monotonic() - worker.started > self._config.timeout_s
                    if worker.task is not None and late:
                        worker.kill(f'takes more than {self._config.timeout_s:g} s')
                        yield self._reply(worker, selector)

    def _reply(self, worker: '_Process', selector: selectors.BaseSelector
               ) -> tuple[Any, dict[str, Any]]:
        selector.unregister(worker.replies)
        task, reply = worker.task, worker.reply()
        assert task is not None
        if worker.dead:
            self._workers.remove(worker)
        if 'fatal' in reply:
            raise ImportError(reply['fatal'])
        return task.key, reply


class _Process:
    """A worker process and the task that it is at."""

    def __init__(self, config: IngestConfig, pass_fds: tuple[int, ...]):
        path = os.pathsep.join(
            part for part in (str(_PACKAGE_ROOT), os.environ.get('PYTHONPATH', '')) if part)
        threads = {name: '1' for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'vrag_jax.corpus.ingestion.worker'], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, encoding='utf-8', bufsize=1, pass_fds=pass_fds,
            env={**os.environ, 'PYTHONPATH': path, **threads})
        assert self._process.stdout is not None
        self.replies = self._process.stdout
        self.task: ReadingTask | None = None
        self.started = 0.0
        self.dead = False
        self._reason = ''
        self._send(dataclasses.asdict(config))

    def start(self, task: ReadingTask) -> None:
        self.task, self.started = task, time.monotonic()
        self._send(task.request)

    def reply(self) -> dict[str, Any]:
        """Waits for the reply; of a process that has died it is an error that says so."""
        self.task = None
        line = self.replies.readline()
        if line:
            return json.loads(line)
        self.dead = True
        code = self._process.wait()
        self.end()
        reason = self._reason or (f'ends its reader by {signal.Signals(-code).name}' if code < 0
                                  else f'ends its reader with code {code}')
        return {'error': reason}

    def kill(self, reason: str) -> None:
        self._reason = reason
        self._process.kill()

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self.replies.close()
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            print(json.dumps(message), file=self._process.stdin)
        except BrokenPipeError:
            pass  # `reply` says so.
