"""The other side of `single_vectors.py`: faiss's IVF-Flat and IVF-PQ FastScan with refinement."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks import paired

LISTS = 316  # sqrt(n), as ours.


def main(folder: Path, least: float, threads: int) -> None:
    faiss.omp_set_num_threads(threads)
    vectors = np.load(folder / 'vectors.npy')
    data = {name: np.load(folder / f'{name}.npy') for name in (
        'queries', 'queries_best', 'chosen_on', 'chosen_on_best')}
    facts: dict[str, Any] = {'faiss': faiss.__version__, 'numpy': np.__version__,
                             'threads': threads}
    runs: dict[str, Any] = {}
    for name, build, expansions in (
            ('IVF-Flat', ivf_flat, (0,)), ('FastScan', fast_scan, (2, 3, 4, 5, 8, 12, 20))):
        start = time.perf_counter()
        index = build(vectors)
        facts[f'{name}, built_s'] = time.perf_counter() - start
        setting = _cheapest(index, data['chosen_on'], data['chosen_on_best'], least, expansions)
        facts[name] = dict(zip(('probes', 'expansion'), setting, strict=True))
        _set(index, *setting)
        runs[name] = _timed(index, data['queries'], data['queries_best'])
        runs[name]()
    paired.serve(runs, facts)


def ivf_flat(vectors: np.ndarray) -> Any:
    index = faiss.index_factory(vectors.shape[1], f'IVF{LISTS},Flat', faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index


def fast_scan(vectors: np.ndarray) -> Any:
    """4 bits for each two dimensions, as ours, and the vectors to score candidates again."""
    index = faiss.index_factory(
        vectors.shape[1], f'IVF{LISTS},PQ{vectors.shape[1] // 2}x4fs,RFlat',
        faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index


def _set(index: Any, probes: int, expansion: int) -> None:
    if expansion:
        index.k_factor = expansion
        faiss.extract_index_ivf(index.base_index).nprobe = probes
    else:
        index.nprobe = probes


def _cheapest(index: Any, queries: np.ndarray, best: np.ndarray, least: float,
              expansions: tuple[int, ...]) -> tuple[int, int]:
    """Returns the fastest numbers of lists and of candidates a hit that reach the recall."""
    settings = []
    for probes in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        for expansion in expansions:
            _set(index, probes, expansion)
            seconds, (_, rows) = paired.timed(lambda: index.search(queries, 10))
            if _recall(rows, best) >= least:
                settings.append((seconds, (probes, expansion)))
                break
    if not settings:
        raise RuntimeError(f'no setting reaches recall {least}')
    return min(settings)[1]


def _timed(index: Any, queries: np.ndarray, best: np.ndarray
           ) -> Callable[[], tuple[float, float]]:
    def search() -> tuple[float, float]:
        seconds, (_, rows) = paired.timed(lambda: index.search(queries, 10))
        return seconds, _recall(rows, best)

    return search


def _recall(found: np.ndarray, best: np.ndarray) -> float:
    return float((found[:, :, None] == best[:, None, :]).any(axis=1).mean())


if __name__ == '__main__':
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
