"""100,000 clustered vectors of 128 dimensions: our index and those of faiss at equal recall.

    python3 -m venv .venv-faiss && .venv-faiss/bin/pip install faiss-cpu absl-py
    python -m benchmarks.single_vectors --faiss_python=.venv-faiss/bin/python

Each side is given the cheapest setting of its own that reaches the recall, found on other
queries than those that are timed. The pairs run in turn.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks import paired

_FAISS = flags.DEFINE_string('faiss_python', '.venv-faiss/bin/python', 'Python with faiss.')
_COUNT = flags.DEFINE_integer('vectors', 100_000, 'Vectors.')
_QUERIES = flags.DEFINE_integer('queries', 10_000, 'Queries of a run.')
_SPREAD = flags.DEFINE_float('spread', 1.0, 'Distance from a centre, by that from 0.')
_RECALL = flags.DEFINE_float('recall', 0.997, 'Recall of the ten best that each side reaches.')

DIMS, CENTRES = 128, 1000


def main(_: Sequence[str]) -> None:
    cores = paired.use_cores(paired.THREADS.value)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_data(folder)
        environment = paired.thread_environment(paired.THREADS.value)
        arguments = [str(folder), str(_RECALL.value), str(paired.THREADS.value)]
        with (paired.Worker('ours', [sys.executable, '-m', 'benchmarks.single_vectors_ours',
                                     *arguments], environment) as ours,
              paired.Worker('faiss', [_FAISS.value, '-m', 'benchmarks.single_vectors_faiss',
                                      *arguments], environment) as theirs):
            workers = [ours, theirs]
            conditions = paired.Conditions('single_vectors', workers, paired.THREADS.value, cores)
            replies = paired.in_turn({
                'ours': paired.Lane(ours, 'search'),
                'IVF-Flat': paired.Lane(theirs, 'IVF-Flat'),
                'FastScan': paired.Lane(theirs, 'FastScan')}, paired.REPEATS.value)
            for name in ('IVF-Flat', 'FastScan'):
                _emit(conditions, name, replies)


def _emit(conditions: paired.Conditions, name: str,
          replies: Mapping[str, Sequence[paired.Reply]]) -> None:
    both = replies['ours'], replies[name]
    ours, theirs = ([reply.seconds for reply in side] for side in both)
    record = paired.compare(ours, theirs, amount=_QUERIES.value)
    paired.emit(conditions.record(
        f'{_COUNT.value:,} x {DIMS}, spread {_SPREAD.value:g}, against faiss {name}',
        'queries/s', **record,
        recall_ours=both[0][0].check, recall_theirs=both[1][0].check), paired.OUT.value)


def _write_data(folder: Path) -> None:
    """Writes unit vectors, queries, others to choose settings on, and the best of each.

    Vectors lie around centres, at the distance that `--spread` says.
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, DIMS), np.float32) / np.sqrt(DIMS)

    def draw(count: int) -> np.ndarray:
        noise = rng.standard_normal((count, DIMS), np.float32) * np.float32(
            _SPREAD.value / np.sqrt(DIMS))
        vectors = centres[rng.integers(CENTRES, size=count)] + noise
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors = draw(_COUNT.value)
    np.save(folder / 'vectors.npy', vectors)
    for name, count in (('queries', _QUERIES.value), ('chosen_on', 2000)):
        queries = draw(count)
        np.save(folder / f'{name}.npy', queries)
        best = [np.argpartition(-(part @ vectors.T), 10, axis=1)[:, :10]
                for part in np.array_split(queries, max(1, count // 500))]
        np.save(folder / f'{name}_best.npy', np.concatenate(best))


if __name__ == '__main__':
    app.run(main)
