"""Start-up: from the command to the first update, with and without a compilation cache.

    python -m benchmarks.startup --run=runs/tiny

The tiny config's loop is started with a few steps of pretraining and SFT, and stopped at its
first GRPO iteration: without JAX's persistent compilation cache, with an empty one, and with
the one that this has filled. `--run` is a finished run, in whose metrics the compilations
of all its GRPO iterations are counted.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app

from benchmarks import paired
from benchmarks.setting import WORKDIR
from vrag_jax.metrics import read_rows

SHORT = (
    '--config.pretrain.stages=((3,16,48,0,0,0),(2,2,0,28,2,16))', '--config.sft.steps=2',
    '--config.sft.trajectories=100', '--config.grpo.steps=2')
CACHE = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
         'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0'}
FIGURES = {'to_first_update': 'from the command to the first update',
           'to_first_grpo_update': 'from the last SFT update to the first of GRPO'}
TIME_LIMIT = 600.0  # Seconds.


def first_updates(rows: Sequence[Mapping[str, Any]], started: float) -> dict[str, float]:
    """Times of a run's first updates.

    Args:
      rows: of its `metrics.jsonl`, in order.
      started: time of the command, in seconds since the epoch.

    Returns:
      Seconds 'to_first_update' of the run, 'to_first_grpo_update' from the last update
      before it (corpus and policy are there by then: set-up, compilation, rollout,
      update), and the 'compilations' until then: programs compiled, or read from the cache.
    """
    first_grpo = next(i for i, row in enumerate(rows) if row['phase'] == 'grpo')
    return {
        'to_first_update': round(rows[0]['time'] - started, 2),
        'to_first_grpo_update': round(
            rows[first_grpo]['time'] - rows[first_grpo - 1]['time'], 2),
        'compilations': int(rows[first_grpo]['values']['compilations'])}


def late_compilations(rows: Sequence[Mapping[str, Any]], phase: str, after: int) -> tuple[int, int]:
    """Returns the compilations of a phase after some of its iterations, and all iterations."""
    counts = [row['values']['compilations'] for row in rows if row['phase'] == phase]
    return int(counts[-1] - counts[after - 1]), len(counts)


def run(environment: Mapping[str, str]) -> dict[str, float]:
    """Starts the shortened loop, waits for its first GRPO iteration, and stops it."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / 'run'
        started = time.time()
        process = subprocess.Popen(
            [sys.executable, '-m', 'vrag_jax.main', '--config=configs/tiny.py',
             f'--workdir={workdir}', *SHORT],
            cwd=paired.ROOT, env=os.environ | dict(environment), stdout=subprocess.DEVNULL)
        try:
            while time.time() - started < TIME_LIMIT:
                time.sleep(0.2)
                file = workdir / 'metrics.jsonl'
                rows = read_rows(file) if file.exists() else []
                if any(row['phase'] == 'grpo' for row in rows):
                    return first_updates(rows, started)
                if process.poll() is not None:
                    raise RuntimeError(f'the run ended with code {process.returncode}')
        finally:
            process.kill()
            process.wait()
    raise RuntimeError(f'no GRPO iteration after {TIME_LIMIT:.0f} seconds')


def main(_: list[str]) -> None:
    cores = paired.use_cores(paired.THREADS.value)
    conditions = paired.Conditions('startup', (), paired.THREADS.value, cores)

    def emit(figure: str, unit: str, **values: Any) -> None:
        paired.emit(conditions.record(figure, unit, **values), paired.OUT.value)

    with tempfile.TemporaryDirectory() as cache:
        with_cache = {'JAX_COMPILATION_CACHE_DIR': cache, **CACHE}
        # The first run fills the cache, and only it meets it empty.
        taken: dict[str, list[dict[str, float]]] = {
            'empty cache': [run(with_cache)], 'no cache': [], 'full cache': []}
        for repeat in range(paired.REPEATS.value):
            del repeat
            taken['no cache'].append(run({}))
            taken['full cache'].append(run(with_cache))
    for name, times in taken.items():
        for key in FIGURES:
            emit(f'{name}, {FIGURES[key]}', 's', **paired.spread([r[key] for r in times]),
                 compilations=times[0]['compilations'])
    late, iterations = late_compilations(
        read_rows(Path(WORKDIR.value) / 'metrics.jsonl'), 'grpo', after=3)
    emit('compilations after the third iteration', 'programs', value=late, iterations=iterations)


if __name__ == '__main__':
    app.run(main)
