"""Search by words among many pages: building, adding, queries, memory, and what is found.

    python -m benchmarks.word_search --documents=../shared/mmlongbench_dev

Makes `--pages` (70,000) pages of text out of those of real documents, always the same: a page is
as long as a real one drawn by chance, and is filled with runs of lines of real pages. Then, each
in a process of its own, by the way that a task goes: the index is built from a manifest, searched
in batches of 64, and 1,000 pages are added and saved. Last, the real pages (their text layers)
among others of this kind, 21,000 in all, are searched for the real questions: by the lists, by the
same weights computed one by one from the formula, and by BM25. About 6 minutes on two cores.
"""

import ast
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from absl import app, flags

from benchmarks import paired
from benchmarks.corpora import documents_texts, mixed_queries, synthetic_texts, write_pages
from vrag_jax.corpus.pages import PageStore
from vrag_jax.indexing.build import open_engine
from vrag_jax.indexing.retrieval_config import RetrievalConfig
from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever
from vrag_jax.retrieval.lexical.ngram import NgramListsRetriever
from vrag_jax.retrieval.lexical.ngram_encoder import NgramConfig
from vrag_jax.retrieval.lexical.term_counts import GROUPS, count_pages, count_query
from vrag_jax.retrieval.retriever import Retriever

_DOCUMENTS = flags.DEFINE_string('documents', '../shared/mmlongbench_dev',
                                 'Folder with `documents` (PDFs) and `samples.json` (questions).')
_WORK = flags.DEFINE_string('work', 'runs/word_search', 'Folder of the corpus and its index.')
_PAGES = flags.DEFINE_integer('pages', 70_000, 'Pages of the large corpus.', lower_bound=5_000)
_MORE = flags.DEFINE_integer('more', 1_000, 'Pages that are added to it.', lower_bound=1)
_AMONG = flags.DEFINE_integer('among', 21_000, 'Pages of which some are real.', lower_bound=5_000)
_QUERIES = flags.DEFINE_integer('queries', 1_024, 'Queries that are timed.', lower_bound=64)
_PART = flags.DEFINE_enum('part', '', ['', 'build', 'search', 'add'], 'Of the measurement, in a '
                          'process of its own; empty for all.')

_BATCH = 64
K = 10


def real_questions(folder: Path) -> list[tuple[str, frozenset[str]]]:
    """Returns the questions that have an answer on known pages, and ids of these."""
    found = []
    for record in json.loads((folder / 'samples.json').read_text('utf-8')):
        evidence = ast.literal_eval(record['evidence_pages'])
        if record['answer_format'] != 'None' and evidence:
            document = PurePath(record['doc_id']).stem
            found.append((record['question'], frozenset(f'{document}_{p}' for p in evidence)))
    return found


# ---- Parts in a process of their own


def _seconds_and_memory(start: float) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {'s': round(time.perf_counter() - start, 2), 'peak_gb': round(peak / 1e9, 3)}


def build(work: Path) -> dict[str, float]:
    """Builds the index of the manifest."""
    start = time.perf_counter()
    engine = open_engine(RetrievalConfig(), PageStore.open(work / 'pages.jsonl'), work)
    return {**_seconds_and_memory(start), 'pages': len(engine.store)}


def add(work: Path) -> dict[str, float]:
    """Adds the pages of another manifest to the index, and saves it."""
    engine = open_engine(RetrievalConfig(), PageStore.open(work / 'pages.jsonl'), work)
    more = list(PageStore.open(work / 'more' / 'pages.jsonl'))
    start = time.perf_counter()
    engine.add(more, scratch=work / 'index')
    added = _seconds_and_memory(start)['s']
    engine.save(work / 'index')
    both = _seconds_and_memory(start)
    return {'s': both['s'], 'added_s': added, 'peak_gb': both['peak_gb'],
            'pages': len(engine.store)}


def search(work: Path) -> dict[str, float]:
    """Searches in batches, after one that is not timed."""
    start = time.perf_counter()
    engine = open_engine(RetrievalConfig(), PageStore.open(work / 'pages.jsonl'), work)
    opened = _seconds_and_memory(start)
    questions = [question for question, _ in real_questions(Path(_DOCUMENTS.value))]
    queries = mixed_queries(questions, _QUERIES.value + _BATCH, seed=0)
    engine.search(queries[:_BATCH], K)
    start, busy = time.perf_counter(), time.process_time()
    for first in range(_BATCH, len(queries) - _BATCH + 1, _BATCH):
        engine.search(queries[first:first + _BATCH], K)
    busy, taken = time.process_time() - busy, _seconds_and_memory(start)
    count = (len(queries) - _BATCH) // _BATCH * _BATCH
    return {'cpu_ms': round(1e3 * busy / count, 3), 'ms': round(1e3 * taken['s'] / count, 3),
            'opened_s': opened['s'], 'peak_gb': taken['peak_gb']}


def part(name: str) -> dict[str, float]:
    """Returns what a part of the measurement finds in a process of its own."""
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.word_search', f'--part={name}', f'--work={_WORK.value}',
         f'--documents={_DOCUMENTS.value}', f'--queries={_QUERIES.value}'],
        cwd=paired.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---- What is found


def exact_scores(texts: Sequence[str], queries: Sequence[str], config: NgramConfig) -> np.ndarray:
    """Returns the score of each text for each query by the formula, float64 [queries, texts]."""
    counts = count_pages(texts, config.buckets)
    lengths = counts.lengths(config.buckets)
    matrix = counts.matrix.tocsc()
    group = counts.terms // config.buckets
    scores = np.zeros((len(queries), len(texts)))
    for row, query in zip(scores, queries, strict=True):
        for term, count in zip(*count_query(query, config.buckets), strict=True):
            column = np.searchsorted(counts.terms, term)
            if column == len(counts.terms) or counts.terms[column] != term:
                continue
            g = group[column]
            found = slice(*matrix.indptr[column:column + 2])
            rows, tf = matrix.indices[found], matrix.data[found]
            if GROUPS[g] == 'pieces' and len(rows) > max(config.piece_share * len(texts), 64):
                continue
            idf = np.log(1 + (len(texts) - len(rows) + 0.5) / (len(rows) + 0.5))
            norm = config.k1 * (1 - config.b + config.b * lengths[g, rows] / lengths[g].mean())
            row[rows] += config.weighting.groups[g] * (1 + np.log(count)) * idf * (
                tf * (config.k1 + 1) / (tf + norm))
    return scores


def hit_rates(found: Sequence[Sequence[str]], answers: Sequence[frozenset[str]]
              ) -> dict[str, float]:
    """Returns the share of questions one of whose pages is among the first hits."""
    return {f'hit_at_{k}': round(float(np.mean(
        [bool(answer & set(ids[:k])) for ids, answer in zip(found, answers, strict=True)])), 4)
        for k in (1, 5, K)}


def quality(real: Mapping[str, Sequence[str]], folder: Path) -> dict[str, dict[str, float]]:
    """Returns hits among real and other pages, by what finds them."""
    ids = [f'{name}_{n}' for name, pages in real.items() for n in range(1, len(pages) + 1)]
    texts = [text for pages in real.values() for text in pages]
    others = _AMONG.value - len(texts)
    ids += [f'other {n}' for n in range(others)]
    texts += synthetic_texts(texts, others, seed=1)
    questions, answers = zip(*real_questions(folder), strict=True)
    scores = exact_scores(texts, questions, NgramConfig())
    best = np.argsort(-scores, axis=1, kind='stable')[:, :K]
    found = {'exact weights': hit_rates([[ids[row] for row in rows] for rows in best], answers)}
    retrievers: dict[str, Retriever] = {
        'inverted lists': NgramListsRetriever.of_texts(ids, texts),
        'BM25': Bm25Retriever.of_texts(ids, texts)}
    for name, retriever in retrievers.items():
        hits, _ = retriever.search(questions, K)
        found[name] = hit_rates(hits, answers)
        if name == 'inverted lists':
            found[name]['recall_at_10_of_exact_search_of_the_same_weights'] = round(float(np.mean(
                [len({ids[row] for row in rows} & set(mine)) / K
                 for rows, mine in zip(best, hits, strict=True)])), 4)
    return found


def main(_: list[str]) -> None:
    work, folder = Path(_WORK.value), Path(_DOCUMENTS.value)
    if _PART.value:
        print(json.dumps({'build': build, 'search': search, 'add': add}[_PART.value](work)))
        return
    conditions = paired.Conditions('word_search')
    real = documents_texts(folder / 'documents')
    pages = [text for texts in real.values() for text in texts]
    texts = list(synthetic_texts(pages, _PAGES.value + _MORE.value))
    write_pages(work, {'synthetic': texts[:_PAGES.value]})
    write_pages(work / 'more', {'more': texts[_PAGES.value:]})
    del texts
    for old in (work / 'index').glob('manifest.json'):
        old.unlink()
    figures = {'built': part('build'), 'searched': part('search'),
               f'{_MORE.value:,} more added and saved': part('add')}
    for name, values in figures.items():
        paired.emit(conditions.record(f'{_PAGES.value:,} pages, {name}', 'seconds', **values),
                    paired.OUT.value)
    for name, values in quality(real, folder).items():
        paired.emit(conditions.record(f'{_AMONG.value:,} pages, {name}', 'share of questions',
                                      **values), paired.OUT.value)


if __name__ == '__main__':
    app.run(main)
