"""Late interaction at 2,000 and 20,000 pages against exact MaxSim: CPU time, recall, memory.

    python -m benchmarks.late_interaction --real_pages=../shared/real_pages --pages=20000 \
        --torch_python=.venv-torch/bin/python --append=benchmarks/results.jsonl
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from absl import app, flags
from PIL import Image

from benchmarks import paired
from benchmarks.page_vectors import Mosaics, write_corpus

_REAL = flags.DEFINE_string('real_pages', '../shared/real_pages', 'Folder of the real pages.')
_PAGES = flags.DEFINE_integer('pages', 2000, 'Pages of the corpus.')
_QUERIES = flags.DEFINE_integer('queries', 50, 'Queries.')
_TILES = flags.DEFINE_integer('tiles', 2, 'Rows and columns of tiles of a mosaic.')
_WORK = flags.DEFINE_string('work', '', 'Folder for corpus and index, kept; by default none is.')
_TORCH = flags.DEFINE_string('torch_python', '', "Python with torch, for the reference's way.")
_CHANGES = flags.DEFINE_bool('changes', True, 'Add 100 pages, and delete 50.')
_SEARCH = flags.DEFINE_string('search', '', 'Used by the benchmark itself: search this folder.')

_NEW, _GONE = 100, 50
_ALONE = 10  # Queries that all pages are scored for one after the other.


class Vectors:
    """Stands for the embedder whose vectors the corpus is made of."""

    kind, dims, multi_vector, fingerprint = 'real_pages', 128, True, 'mosaics'
    reads: Literal['text', 'image'] = 'image'
    tokens_read = 0

    def embed_pages(self, pages: Sequence[Any]) -> list[np.ndarray]:
        raise NotImplementedError('the corpus is made of vectors')

    def embed_queries(self, queries: Sequence[str]) -> list[np.ndarray]:
        raise NotImplementedError('the queries are vectors')

    def input_digest(self, page: Any) -> str:
        raise NotImplementedError('the corpus is made of vectors')

    def page_grids(self, pages: Sequence[Any]) -> list[Any]:
        raise NotImplementedError('nothing is pooled')


def main(_: Sequence[str]) -> None:
    paired.use_cores(paired.THREADS.value)
    if _SEARCH.value:
        print(json.dumps(_search(Path(_SEARCH.value))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(_WORK.value or temporary)
        mosaics = Mosaics.open(Path(_REAL.value) / 'colqwen2_embeddings.npz', _TILES.value)
        write_corpus(mosaics, _PAGES.value, _QUERIES.value, work)
        build = _build(work)
        # A process of its own, in which no memory of building is counted.
        found = _worker([sys.executable, '-m', 'benchmarks.late_interaction',
                         f'--search={work}', f'--threads={paired.THREADS.value}'])
        if _TORCH.value:
            found |= _worker([_TORCH.value, 'benchmarks/late_interaction_torch.py', str(work),
                              str(paired.THREADS.value)])
            found['torch_by_ours'] = found['torch_cpu_ms'] / found['ours_cpu_ms']
        if _CHANGES.value:
            found |= _change(work, mosaics)
    conditions = paired.Conditions('late_interaction', threads=paired.THREADS.value)
    figure = f'{_PAGES.value:,} pages, mosaics of {_TILES.value}x{_TILES.value}'
    paired.emit(conditions.record(figure, 'ms of CPU a query', **build, **found),
                paired.OUT.value)


def _worker(command: Sequence[str]) -> dict[str, Any]:
    environment = {**os.environ, **paired.thread_environment(paired.THREADS.value)}
    done = subprocess.run(command, cwd=paired.ROOT, env=environment, check=True,
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _build(work: Path) -> dict[str, Any]:
    from vrag_jax.corpus.artifact import write_artifact
    from vrag_jax.retrieval.late_interaction.retriever import LateInteractionRetriever

    tokens, offsets = np.load(work / 'tokens.npy', mmap_mode='r'), np.load(work / 'offsets.npy')
    ids = [f'page {number}' for number in range(len(offsets) - 1)]
    start = time.process_time()
    pages = [tokens[a:b] for a, b in itertools.pairwise(offsets)]
    retriever = LateInteractionRetriever.of_pages(Vectors(), ids, pages, scratch=work)
    seconds = time.process_time() - start
    write_artifact(work / 'index', 'retriever', retriever.write_files)
    return {'build_cpu_s': round(seconds, 1), 'build_peak_gb': _peak_gb(),
            'recall_at_build': retriever.recall}


def _open(work: Path) -> Any:
    from vrag_jax.corpus.artifact import open_artifact
    from vrag_jax.retrieval.late_interaction.retriever import LateInteractionRetriever

    return open_artifact(work / 'index', 'retriever', lambda folder, fields:
                         LateInteractionRetriever.load(folder, fields, [Vectors()]))


def _search(work: Path) -> dict[str, Any]:
    from vrag_jax.retrieval.late_interaction.maxsim import maxsim_all

    seconds = time.perf_counter()
    retriever = _open(work)
    opened = time.perf_counter() - seconds
    queries, targets = _queries(work)
    retriever.search_vectors(queries, 10)
    [retriever.search_vectors([query], 10) for query in queries[:3]]
    ours_cpu, found = _cpu(lambda: [retriever.search_vectors([q], 10)[0][0] for q in queries])
    batch_cpu, _ = _cpu(lambda: retriever.search_vectors(queries, 10))
    searched = _peak_gb()
    candidates = retriever.candidates(queries, 200)
    rows = np.arange(len(retriever.ids))
    maxsim_all(retriever.store, queries, rows[:400])
    maxsim_all(retriever.store, queries, rows[-400:])
    exact_cpu, exact = _cpu(lambda: maxsim_all(retriever.store, queries, rows))
    alone = queries[:_ALONE]
    maxsim_all(retriever.store, alone[:1], rows[:400])
    exact_alone_cpu, _ = _cpu(lambda: [maxsim_all(retriever.store, [q], rows) for q in alone])
    exact_alone_cpu *= len(queries) / len(alone)
    best = np.argsort(-exact, axis=1, kind='stable')[:, :10]
    np.save(work / 'exact.npy', exact)
    count = len(queries)
    return {
        'ours_cpu_ms': ours_cpu / count * 1e3, 'ours_batched_cpu_ms': batch_cpu / count * 1e3,
        'exact_cpu_ms': exact_alone_cpu / count * 1e3,
        'exact_batched_cpu_ms': exact_cpu / count * 1e3,
        'exact_by_ours': exact_alone_cpu / ours_cpu,
        'exact_by_ours_batched': exact_cpu / batch_cpu,
        'top10_among_200': _share(best, candidates),
        'top10_among_rescored': _share(
            best, retriever.candidates(queries, retriever.config.candidates)),
        'top10_found': _share(best, found), 'ndcg10': _ndcg(found, targets),
        'ndcg10_exact': _ndcg(list(best), targets),
        'graded_ndcg10': _graded_ndcg(found, best), 'opened_s': round(opened, 2),
        'search_peak_gb': searched, 'peak_gb': _peak_gb()}


def _change(work: Path, mosaics: Mosaics) -> dict[str, Any]:
    """Adds and deletes pages, saves, and measures recall on queries again."""
    from vrag_jax.corpus.artifact import write_artifact
    from vrag_jax.embedders.interface import PageContent
    from vrag_jax.retrieval.late_interaction.maxsim import maxsim_all
    from vrag_jax.retrieval.retriever import Changes

    retriever = _open(work)
    queries, _ = _queries(work)
    count = len(retriever.ids)
    pages = [mosaics.page(count + number) for number in range(_NEW)]
    gone = [retriever.ids[row] for row in np.random.default_rng(0).choice(
        count, _GONE, replace=False)]

    def changes(ids: Sequence[str], gone: Sequence[str] = ()) -> Changes:
        contents = [PageContent(page_id, '', Image.Image, (0, 0)) for page_id in ids]
        return Changes(contents, frozenset(gone), list, embed=lambda _, new: pages[:len(new)],
                       scratch=work)

    retriever.updated(changes(['warm']))
    start = time.perf_counter()
    changed = retriever.updated(changes([f'new {i}' for i in range(_NEW)], gone))
    seconds = time.perf_counter() - start
    write_artifact(work / 'index', 'retriever', changed.write_files)
    saved = time.perf_counter() - start
    rows = np.arange(len(changed.ids))
    best = np.argsort(-maxsim_all(changed.store, queries, rows), axis=1, kind='stable')[:, :10]
    return {'changed_s': round(seconds, 2), 'changed_and_saved_s': round(saved, 2),
            'top10_among_200_changed': _share(best, changed.candidates(queries, 200))}


def _queries(work: Path) -> tuple[list[np.ndarray], np.ndarray]:
    return list(np.load(work / 'queries.npy')), np.load(work / 'targets.npy')


def _cpu(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def _peak_gb() -> float:
    """Returns the greatest resident set of this process so far, mapped files included."""
    status = Path('/proc/self/status').read_text()
    match = re.search(r'VmHWM:\s+(\d+) kB', status)
    assert match is not None
    return round(int(match[1]) * 1024 / 1e9, 3)


def _share(best: np.ndarray, found: Sequence[np.ndarray]) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(a)
                          for a, b in zip(best, found, strict=True)]))


def _ndcg(found: Sequence[np.ndarray], targets: np.ndarray) -> float:
    """Mean NDCG@10 where the page that a query was made from is the one that is relevant."""
    ranks = [np.flatnonzero(rows[:10] == target) for rows, target in zip(
        found, targets, strict=True)]
    return float(np.mean([1 / np.log2(rank[0] + 2) if len(rank) else 0.0 for rank in ranks]))


def _graded_ndcg(found: Sequence[np.ndarray], best: np.ndarray) -> float:
    """Mean NDCG@10 where the exact ten best are worth 10, 9, ... 1."""
    discounts = 1 / np.log2(np.arange(10) + 2)
    ideal = float((np.arange(10, 0, -1) * discounts).sum())
    gains = [[10.0 - np.flatnonzero(exact == row)[0] if row in exact else 0.0 for row in rows[:10]]
             for rows, exact in zip(found, best, strict=True)]
    return float(np.mean([np.dot(gain, discounts[:len(gain)]) / ideal for gain in gains]))


if __name__ == '__main__':
    app.run(main)
