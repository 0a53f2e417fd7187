"""Metrics of a run: a JSONL file, TensorBoard events and a progress line."""

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
from tensorboardX import SummaryWriter

COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'
LINE_EVERY = 5.0  # seconds between progress lines where stdout is not a terminal
REDRAW_EVERY = 0.1  # seconds between redraws of the progress bar on a terminal
BAR_WIDTH = 20  # characters

_compilations = 0


def _count_compilation(event: str, duration_secs: float, **_: str | int) -> None:
    global _compilations
    if event == COMPILE_EVENT:
        _compilations += 1


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def compilations() -> int:
    """Returns how many XLA programs this process has compiled (or loaded from a
    compile cache) since this module was imported."""
    return _compilations


def peak_memory_gb() -> float:
    """Returns the largest resident memory of this process so far, in 1e9 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == 'darwin' else 1024) / 1e9


class MetricsWriter:
    """Writes the metrics of a run, phase by phase; rows on disk outlive a kill.

    `metrics.jsonl` holds one object a line: step, phase, time (seconds since the
    epoch), values. TensorBoard events lie under `tensorboard/<phase>`. To the
    values of each step are added 'compilations' (see `compilations`),
    'peak_memory_gb', 'seconds' and, where 'tokens' is given, 'tokens_per_s'.
    Only the first process of a multi-process run writes.

    Args:
      workdir: directory of the run; created if missing.
      stream: where the progress line goes; the standard output if None.
    """

    def __init__(self, workdir: Path | str, stream: TextIO | None = None):
        self._workdir = Path(workdir)
        self._active = jax.process_index() == 0
        self._stream = stream
        self._phase = ''
        self._progress: Progress | None = None
        self._rows: TextIO | None = None
        self._events: SummaryWriter | None = None
        self._last_write = 0.0

    def begin(self, phase: str, first: int, total: int) -> None:
        """Starts a phase, or goes on with it.

        Args:
          phase: its name.
          first: steps already done; rows of this phase after it are dropped, so
            that a run which was killed and resumed holds each step once.
          total: steps of the phase.
        """
        if self._phase:
            raise ValueError(f'phase {self._phase!r} has not ended')
        self._phase = phase
        self._last_write = time.perf_counter()
        if not self._active:
            return
        path = self._workdir / 'metrics.jsonl'
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_rows_after(path, phase, first)
        self._rows = path.open('a', encoding='utf-8')
        self._events = SummaryWriter(
            str(self._workdir / 'tensorboard' / phase), purge_step=first + 1, flush_secs=10)
        self._progress = Progress(phase, first, total, self._stream or sys.stdout)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of a step of the current phase.

        Args:
          step: steps done, from 1.
          values: numbers by name.
        """
        if not self._phase:
            raise ValueError('write() needs begin() first')
        now = time.perf_counter()
        seconds = now - self._last_write
        self._last_write = now
        if self._rows is None or self._events is None or self._progress is None:
            return
        row = {name: float(value) for name, value in values.items()}
        row |= {'seconds': seconds, 'compilations': float(compilations()),
                'peak_memory_gb': peak_memory_gb()}
        if 'tokens' in row:
            row['tokens_per_s'] = row['tokens'] / max(seconds, 1e-9)
        self._rows.write(json.dumps(
            {'step': step, 'phase': self._phase, 'time': time.time(), 'values': row}) + '\n')
        self._rows.flush()
        for name, value in row.items():
            self._events.add_scalar(name, value, step)
        self._progress.show(step, row)

    def end(self) -> None:
        """Ends the current phase."""
        if self._rows is not None and self._events is not None and self._progress is not None:
            self._rows.close()
            self._events.close()
            self._progress.close()
        self._rows = self._events = self._progress = None
        self._phase = ''


class Progress:
    """A bar that is redrawn on a terminal, or plain lines now and then.

    Args:
      phase: shown in front.
      first: steps done before this process began.
      total: steps of the phase.
      stream: where it is written.
    """

    def __init__(self, phase: str, first: int, total: int, stream: TextIO):
        self._phase, self._first, self._total = phase, first, total
        self._stream = stream
        self._terminal = stream.isatty()
        self._started = time.perf_counter()
        self._shown = -float('inf')
        self._width = 0

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a step, unless one was shown just before; the last is always shown."""
        now = time.perf_counter()
        interval = REDRAW_EVERY if self._terminal else LINE_EVERY
        if step < self._total and now - self._shown < interval:
            return
        self._shown = now
        rate = (now - self._started) / max(step - self._first, 1)
        line = progress_line(self._phase, step, self._total, values, rate * (self._total - step))
        if self._terminal:
            self._stream.write('\r' + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + '\n')
        self._stream.flush()

    def close(self) -> None:
        """Leaves the bar as it is and goes to the next line."""
        if self._terminal and self._width:
            self._stream.write('\n')


def progress_line(
    phase: str, step: int, total: int, values: Mapping[str, float], seconds_left: float
) -> str:
    """Returns the one line that says where a phase is."""
    filled = round(BAR_WIDTH * step / max(total, 1))
    parts = [f'{phase:<14} [{"#" * filled}{"." * (BAR_WIDTH - filled)}] {step}/{total}']
    for name in ('loss', 'reward', 'accuracy'):
        if name in values:
            parts.append(f'{name} {values[name]:.3f}')
    if 'tokens_per_s' in values:
        parts.append(f'{values["tokens_per_s"]:,.0f} tokens/s')
    minutes, seconds = divmod(round(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    left = f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
    return '  '.join([*parts, f'{left} left'])


def drop_rows_after(path: Path, phase: str, step: int) -> None:
    """Removes rows of a phase after a step, and a last row that was cut off.

    Args:
      path: a `metrics.jsonl`; nothing happens if it is missing.
      phase: whose rows.
      step: last step that stays.
    """
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row['phase'] != phase or row['step'] <= step]
    part = path.with_suffix('.part')
    part.write_text(''.join(json.dumps(row) + '\n' for row in kept), encoding='utf-8')
    os.replace(part, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads a `metrics.jsonl`: dicts with step, phase, time and values.

    A last line that was cut off by a kill is left out.

    Raises:
      ValueError: if any other line is no JSON object; names file and line.
    """
    lines = path.read_text(encoding='utf-8').splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f'{path}, line {number}: not a JSON object') from error
    return rows


def steps_taken(path: Path) -> dict[str, int]:
    """Returns the steps of each phase that a `metrics.jsonl` tells of, in its order.

    Args:
      path: the file; without one nothing was trained.
    """
    steps: dict[str, int] = {}
    for row in read_rows(path) if path.exists() else []:
        steps[row['phase']] = max(row['step'], steps.get(row['phase'], 0))
    return steps
