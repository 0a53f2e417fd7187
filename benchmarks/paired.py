"""Two warmed-up worker processes that are timed strictly in turn, and records of it."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = '@@'  # Before a line of the protocol; everything else a worker prints is noise.
ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Times of two sides that were taken in turn.

    Attributes:
      ours, theirs: seconds of each run, in order.
    """

    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratio(self) -> float:
        """How many times as fast ours is: the ratio of medians."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    def record(self) -> dict[str, Any]:
        """Every time, medians, spread, and the ratio of each turn."""
        sides = {'ours': self.ours, 'theirs': self.theirs}
        out: dict[str, Any] = {
            name: {'seconds': [round(t, 4) for t in times],
                   'median': round(statistics.median(times), 4),
                   'min': round(min(times), 4), 'max': round(max(times), 4)}
            for name, times in sides.items()}
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        return out | {'ratio': round(self.ratio, 2), 'ratio_min': round(min(ratios), 2),
                      'ratio_max': round(max(ratios), 2)}


class Worker:
    """A process that sets itself up once and then answers requests.

    Args:
      python: its interpreter.
      module: run with `python -m module`, e.g. 'benchmarks.rollouts_torch'.
      arguments: for it.
      threads: CPU cores that it may use.
    """

    def __init__(self, python: str, module: str, arguments: Sequence[str], threads: int):
        environment = os.environ | {
            'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': str(threads), 'BENCH_THREADS': str(threads),
            'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', '')}
        self._name = module
        self._process = subprocess.Popen(
            [python, '-m', module, *arguments], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.facts = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the reply."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + '\n')
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK):])
        raise RuntimeError(f'{self._name} ended with status {self._process.wait()}')

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(handle: Callable[..., Mapping[str, Any]], packages: Sequence[str]) -> None:
    """Answers requests on standard input until it is closed; the worker's side.

    Args:
      handle: gets a request's fields, returns a reply.
      packages: whose versions are told.
    """
    _say({name: importlib.metadata.version(name) for name in packages})
    for line in sys.stdin:
        _say(handle(**json.loads(line)))


def _say(reply: Mapping[str, Any]) -> None:
    print(MARK + json.dumps(reply), flush=True)


def pin(threads: int) -> None:
    """Keeps this process on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def threads() -> int:
    """Cores that a worker was given."""
    return int(os.environ['BENCH_THREADS'])


def in_turn(ours: Worker, theirs: Worker, repeats: int, **request: Any) -> Pair:
    """Asks both for the same timed run, one after the other, again and again.

    Each must reply with 'seconds'. The first round warms up and is not counted.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for worker, taken in zip((ours, theirs), times, strict=True):
            seconds = worker.ask(**request, repeat=repeat)['seconds']
            if repeat:
                taken.append(seconds)
    return Pair(*times)


def facts(**more: Any) -> dict[str, Any]:
    """Date, commit, command and machine."""
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, text=True,
                            capture_output=True, check=False).stdout.strip()
    command = ['python', '-m', f'benchmarks.{Path(sys.argv[0]).stem}', *sys.argv[1:]]
    return {'date': datetime.date.today().isoformat(), 'commit': commit,
            'command': ' '.join(_without_path(word) for word in command),
            'python': '.'.join(map(str, sys.version_info[:3])),
            'cores': len(os.sched_getaffinity(0)), **more}


def _without_path(word: str) -> str:
    """An argument without what is special to this machine."""
    name, equals, value = word.partition('=')
    return f'{name}={Path(value).name}' if equals and '/' in value else word


def emit(path: str, benchmark: str, figure: str, **values: Any) -> None:
    """Prints a figure as a JSON line, and appends it to a file if one is given."""
    line = json.dumps({'benchmark': benchmark, 'figure': figure, **values})
    print(line, flush=True)
    if path:
        with open(path, 'a', encoding='utf-8') as file:
            file.write(line + '\n')
