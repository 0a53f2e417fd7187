"""The harness of the benchmarks: worker processes that run strictly in turn, JSON lines out.

A pair is two workers, each a process of its own (they may run under different Pythons),
set up and warmed up once. Then runs are asked for one at a time, A B A B ..., so that
whatever else slows the machine down meets both sides alike. The one that is not asked
waits for its standard input. A worker times itself: the pipe is in no figure.

The other way round, a worker is a script that ends in `serve(runs, facts)`.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import flags

ROOT = Path(__file__).resolve().parents[1]

# A run takes the fields of its request, and returns its seconds and what is checked.
Run = Callable[..., tuple[float, Any]]

# Whose versions a record tells.
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'scann')

TOLERANCE = 1e-4  # Of values that are to be equal, by themselves or by `LEAST`, if that is more.
LEAST = 1e-3

# Names the file descriptor for a worker's replies: libraries print to the standard output.
_REPLIES = 'VRAG_JAX_BENCHMARK_REPLIES'


# ---- The worker's side


def serve(runs: Mapping[str, Run], facts: Mapping[str, Any]) -> None:
    """Answers requests until the standard input ends: the main loop of a worker.

    Args:
      runs: what can be asked for, by name.
      facts: told once, when the worker is ready: versions, threads, sizes.
    """
    with os.fdopen(int(os.environ[_REPLIES]), 'w', buffering=1) as replies:
        print(json.dumps({'ready': dict(facts)}), file=replies)
        for line in sys.stdin:
            request = json.loads(line)
            seconds, check = runs[request.pop('run')](**request)
            print(json.dumps({'seconds': seconds, 'check': check}), file=replies)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of Python and of installed packages."""
    return {'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages}}


# ---- The parent's side

REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed runs of each side.', lower_bound=1)
THREADS = flags.DEFINE_integer('threads', 2, 'Cores of each side.', lower_bound=1)
OUT = flags.DEFINE_string('append', '', 'File to which the JSON lines are appended as well.')


@dataclasses.dataclass(frozen=True)
class Reply:
    """A run's `seconds` and the value to check."""

    seconds: float
    check: Any


class Worker:
    """A worker process; a context manager.

    Attributes:
      name: in the records.
      facts: what the worker told when it was ready.

    Args:
      name: in the records.
      command: starts the process; what it prints goes to the standard error.
      environment: variables that are set besides the parent's own.
    """

    def __init__(self, name: str, command: Sequence[str],
                 environment: Mapping[str, str] | None = None):
        self.name = name
        replies, theirs = os.pipe()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=2, text=True, bufsize=1, cwd=ROOT,
            pass_fds=(theirs,),
            env={**os.environ, **(environment or {}), _REPLIES: str(theirs)})
        os.close(theirs)  # The worker's end alone: when it dies, reading ends.
        self._replies = os.fdopen(replies)
        self.facts: dict[str, Any] = self._read()['ready']

    def __enter__(self) -> 'Worker':
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._replies.close()

    def run(self, run: str, **fields: Any) -> Reply:
        """Asks for a run and waits for it.

        Raises:
          RuntimeError: if the worker has died.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps({'run': run, **fields}), file=self._process.stdin)
        except BrokenPipeError:
            pass  # `_read` says so.
        return Reply(**self._read())

    def _read(self) -> dict[str, Any]:
        line = self._replies.readline()
        if not line:
            raise RuntimeError(f'worker {self.name!r} ended with code {self._process.wait()}')
        return json.loads(line)


@dataclasses.dataclass(frozen=True)
class Lane:
    """What is run in turn with others: a worker and its request."""

    worker: Worker
    run: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self) -> Reply:
        return self.worker.run(self.run, **self.fields)


def in_turn(lanes: Mapping[str, Callable[[], Reply]], repeats: int) -> dict[str, list[Reply]]:
    """Runs lanes in turn, `repeats` rounds, in the order in which they are given.

    Args:
      lanes: what is run, by name, e.g. each a `Lane`.
      repeats: runs of each.

    Returns:
      The replies of each lane, in order.
    """
    replies: dict[str, list[Reply]] = {name: [] for name in lanes}
    for _ in range(repeats):
        for name, lane in lanes.items():
            replies[name].append(lane())
    return replies


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Returns every time (seconds, as run), their median, least and greatest."""
    return {'seconds': [round(s, 6) for s in seconds],
            'median': round(statistics.median(seconds), 6),
            'min': round(min(seconds), 6), 'max': round(max(seconds), 6)}


def compare(ours: Sequence[float], theirs: Sequence[float], amount: float = 1.0) -> dict[str, Any]:
    """Returns both sides' times and how many times as fast ours is.

    Args:
      ours: seconds of each of our runs.
      theirs: seconds of each of theirs, run in turn with ours.
      amount: what one run gets done, e.g. trajectories; rates are `amount` a second.

    Returns:
      `ours` and `theirs` as `spread` gives them with the 'rate' of the median; 'ratio',
      their median by ours, above 1 where ours is faster; 'ratio_min' and 'ratio_max',
      of the runs that came one after the other.
    """
    sides = {name: {**spread(seconds), 'rate': round(amount / statistics.median(seconds), 4)}
             for name, seconds in (('ours', ours), ('theirs', theirs))}
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {**sides, 'ratio': round(sides['theirs']['median'] / sides['ours']['median'], 4),
            'ratio_min': round(min(ratios), 4), 'ratio_max': round(max(ratios), 4)}


def agreement(ours: Mapping[str, float], theirs: Mapping[str, float], names: Sequence[str]
              ) -> dict[str, Any]:
    """Returns both sides' values, their differences, and whether all are equal.

    The tolerance is relative: a loss of 1e-4 would otherwise be equal to none.
    """
    return {
        'equal': all(abs(ours[name] - theirs[name]) <= TOLERANCE * max(abs(theirs[name]), LEAST)
                     for name in names), 'tolerance': TOLERANCE,
        'ours': {name: ours[name] for name in names},
        'theirs': {name: theirs[name] for name in names},
        'difference': {name: abs(ours[name] - theirs[name]) for name in names}}


def use_cores(count: int) -> list[int]:
    """Binds this process, and the workers that it starts, to so many cores.

    XLA takes as many threads as a process may use cores; torch's are set to as many.

    Returns:
      The cores; [] where the system does not bind processes.
    """
    if not hasattr(os, 'sched_setaffinity'):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise ValueError(f'threads = {count}, but this process may use {len(cores)} cores')
    os.sched_setaffinity(0, cores[:count])
    return cores[:count]


def thread_environment(count: int) -> dict[str, str]:
    """Variables that hold the thread pools of numerical libraries to `count` threads."""
    return {name: str(count) for name in (
        'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NUMEXPR_NUM_THREADS')}


def commit() -> str:
    """Returns the commit of this checkout, with '+' where it has been changed since."""
    def git(*arguments: str) -> str:
        done = subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ''

    head = git('rev-parse', 'HEAD')
    # What is measured is appended to a file that is part of it.
    changed = git('status', '--porcelain', '--untracked-files=no', '--',
                  ':(exclude)benchmarks/results.jsonl')
    return head + '+' * bool(changed)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What every record of a benchmark says of how it was taken.

    Attributes:
      benchmark: its name.
      workers: their facts are told by name; none where nothing is timed in pairs.
      threads: of each side; 0 where processes are not bound.
      cores: to which all processes are bound.
    """

    benchmark: str
    workers: Sequence[Worker] = ()
    threads: int = 0
    cores: Sequence[int] = ()

    def record(self, figure: str, unit: str, **values: Any) -> dict[str, Any]:
        """Returns the record of a figure: its values, then the conditions."""
        now = datetime.datetime.now(datetime.UTC)
        # Workers tell their own versions; they may run under other Pythons.
        told = {'workers': {worker.name: worker.facts for worker in self.workers}
                } if self.workers else {'versions': versions(*PACKAGES)}
        bound = {'threads': self.threads, 'cores': list(self.cores)} if self.threads else {}
        return {
            'benchmark': self.benchmark, 'figure': figure, 'unit': unit, **values, **told, **bound,
            'malloc': os.environ.get('GLIBC_TUNABLES', ''), 'machine': platform.machine(),
            'vrag_jax': commit(), 'command': command(),
            'date': now.isoformat(timespec='seconds')}


def command() -> str:
    """Returns the command line of this process, without where things lie on this machine."""
    words = ['python', *sys.orig_argv[1:]]
    parts = [word.rpartition('=') for word in words]
    return shlex.join(f'{name}{equals}{os.path.relpath(value, ROOT)}' if os.path.isabs(value)
                      and Path(value).is_relative_to(ROOT) else
                      f'{name}{equals}{Path(value).name}' if os.path.isabs(value) else
                      f'{name}{equals}{value}' for name, equals, value in parts)


def emit(record: Mapping[str, Any], out: str = '', stream: TextIO | None = None) -> None:
    """Prints a record as one JSON line, and appends it to the file `out`, if one is given."""
    line = json.dumps(record)
    print(line, file=stream or sys.stdout, flush=True)
    if out:
        with open(out, 'a', encoding='utf-8') as file:
            file.write(line + '\n')
