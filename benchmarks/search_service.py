"""The search service under load: 64 clients, batches against one query at a time.

    python -m benchmarks.search_service --shared=../shared

Serves three corpora, each by the command that a user starts: the real slides (their text by OCR,
read once into `--workdir`), the pages of the real PDFs (their text layers), and `--pages` pages
whose texts are mixed from paragraphs of these. In each round a fresh service answers the same
queries, which it has not met before: one at a time, from `--clients` clients that ask for one
each, and from as many clients that ask for batches. Hits of all three must be those of the
engine in this process.
"""

import asyncio
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import paired
from benchmarks.corpora import documents_texts, mixed_queries, mixed_texts, write_pages
from benchmarks.served import service
from vrag_jax.corpus.pages import PageStore
from vrag_jax.retrieval.engine import SearchEngine

_SHARED = flags.DEFINE_string('shared', '../shared', 'Folder of the real pages and documents.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/search_service', 'Where corpora are kept.')
_PAGES = flags.DEFINE_integer(
    'pages', 19_000, 'Pages of the large corpus; from 20,000 on search is approximate.',
    lower_bound=100)
_QUERIES = flags.DEFINE_integer(
    'queries', 2048, 'Queries of a run; a quarter of them on the mixed corpus.', lower_bound=64)
_CLIENTS = flags.DEFINE_integer('clients', 64, 'Clients at the same time.', lower_bound=1)
_BATCH = flags.DEFINE_integer('batch', 64, 'Queries of a request of a batch.', lower_bound=2)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Rounds of all three.', lower_bound=1)

K = 10

Hits = list[tuple[str, float]]


@dataclasses.dataclass
class Load:
    """What came of a run.

    Attributes:
      seconds: from the first request to the last answer.
      latencies: seconds of each request.
      errors: requests that were not answered with 200.
      results: hits of each query, in order.
    """

    seconds: float
    latencies: list[float]
    errors: int
    results: list[Hits]


# ---- The service and its clients


async def ask(port: int, queries: Sequence[str], clients: int, batch: int) -> Load:
    """Asks for all queries; each client has a connection and waits for its answer.

    Args:
      port: of the service.
      queries: are asked for in order by whichever client is free.
      clients: at the same time.
      batch: queries of a request.
    """
    starts = iter(range(0, len(queries), batch))
    answers: dict[int, bytes] = {}
    latencies: list[float] = []
    errors = 0

    async def client() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        for start in starts:
            body = json.dumps({'queries': queries[start : start + batch], 'k': K}).encode()
            begun = time.perf_counter()
            try:
                status, answer = await exchange(reader, writer, body)
            except (OSError, EOFError):
                status, answer = 0, b''
                reader, writer = await asyncio.open_connection('127.0.0.1', port)
            latencies.append(time.perf_counter() - begun)
            if status == 200:
                answers[start] = answer  # Read after the run: that is no time of the service.
            else:
                errors += 1
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - begun
    results: list[Hits] = [[] for _ in queries]
    for start, answer in answers.items():
        results[start : start + batch] = [[(hit['page_id'], hit['score']) for hit in hits]
                                          for hits in json.loads(answer)['results']]
    return Load(seconds, latencies, errors, results)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
                   ) -> tuple[int, bytes]:
    """Sends a search; returns the status and the body of the answer."""
    writer.write(b'POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n'
                 % len(body) + body)
    head = (await reader.readuntil(b'\r\n\r\n')).lower()
    _, _, length = head.partition(b'content-length: ')
    answer = await reader.readexactly(int(length.split(b'\r\n', 1)[0]))
    return int(head.split(b' ', 2)[1]), answer


def difference(found: Sequence[Hits], expected: Sequence[Hits]) -> tuple[int, float]:
    """Returns how many queries found other pages, and the largest difference of a score."""
    other, largest = 0, 0.0
    for one, two in zip(found, expected, strict=True):
        if [page_id for page_id, _ in one] != [page_id for page_id, _ in two]:
            other += 1
        else:
            largest = max([largest, *(abs(a[1] - b[1]) for a, b in zip(one, two, strict=True))])
    return other, largest


def milliseconds(latencies: Sequence[float]) -> dict[str, float]:
    """Returns percentiles of the latencies of requests."""
    p50, p99 = np.percentile(latencies, [50, 99])
    return {'p50_ms': round(1000 * float(p50), 3), 'p99_ms': round(1000 * float(p99), 3),
            'max_ms': round(1000 * max(latencies), 3)}


def measure(name: str, workdir: Path, overrides: Sequence[str], queries: Sequence[str],
            manifest: Path, conditions: paired.Conditions) -> None:
    """Takes all figures of a corpus and emits them."""
    ways = {'one at a time': (1, 1), f'{_CLIENTS.value} clients': (_CLIENTS.value, 1),
            f'{_CLIENTS.value} clients, batches of {_BATCH.value}':
                (_CLIENTS.value, _BATCH.value)}
    warm_up, queries = queries[: _CLIENTS.value], queries[_CLIENTS.value :]
    loads: dict[str, list[Load]] = {way: [] for way in ways}
    for _ in range(_ROUNDS.value):
        for way, (clients, batch) in ways.items():
            with service(workdir, overrides) as port:
                asyncio.run(ask(port, warm_up, clients, batch))
                loads[way].append(asyncio.run(ask(port, queries, clients, batch)))
    store = PageStore.open(manifest)
    engine = SearchEngine.open(workdir / 'index', store)
    expected = [[(hit.page_id, hit.score) for hit in hits] for hits in engine.search(queries, K)]
    for way, taken in loads.items():
        differences = [difference(load.results, expected) for load in taken]
        values: dict[str, Any] = {
            'pages': len(store), 'queries': len(queries), 'clients': ways[way][0],
            'batch': ways[way][1], 'errors': sum(load.errors for load in taken),
            'queries_of_other_pages': sum(other for other, _ in differences),
            'largest_score_difference': max(largest for _, largest in differences)}
        if way == 'one at a time':
            times = {**paired.spread([load.seconds for load in taken]), 'rate': round(
                len(queries) * len(taken) / sum(load.seconds for load in taken), 1)}
        else:
            times = paired.compare(
                [load.seconds for load in taken],
                [load.seconds for load in loads['one at a time']], len(queries))
        latencies = [seconds for load in taken for seconds in load.latencies]
        paired.emit(conditions.record(f'{name}: {way}', 'queries/s', **times,
                                      **milliseconds(latencies), **values), paired.OUT.value)


def main(_: list[str]) -> None:
    cores = paired.use_cores(paired.THREADS.value)
    conditions = paired.Conditions('search_service', (), paired.THREADS.value, cores)
    shared, workdir = Path(_SHARED.value).resolve(), Path(_WORKDIR.value).resolve()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    real = shared / 'real_pages'
    questions = [example['query']
                 for example in json.loads((real / 'questions.json').read_text())['examples']]
    manifest = real / 'pages.jsonl'
    measure('real pages', workdir / 'real_pages',
            [f'--config.data.manifest={manifest}', '--config.retrieval.ocr=True'],
            mixed_queries(questions, _QUERIES.value + _CLIENTS.value, seed=1), manifest, conditions)

    documents = shared / 'mmlongbench_dev'
    questions = [sample['question']
                 for sample in json.loads((documents / 'samples.json').read_text())]
    texts = documents_texts(documents / 'documents')
    pages = [text for document in texts.values() for text in document]
    mixed = {'mixed': mixed_texts(pages, _PAGES.value)}
    for name, of, count, seed in (
            (f'{len(pages):,} pages of PDFs', texts, _QUERIES.value, 3),
            (f'{_PAGES.value:,} mixed pages', mixed, _QUERIES.value // 4, 2)):
        folder = workdir / name.replace(' ', '_')
        manifest = write_pages(folder, of)
        measure(name, folder, [f'--config.data.manifest={manifest}'],
                mixed_queries(questions, count + _CLIENTS.value, seed), manifest, conditions)


if __name__ == '__main__':
    app.run(main)
