"""build_index with a visual embedder, in one process and in two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.embedders import golden_cases as cases
from vrag_jax.config import parse
from vrag_jax.corpus.pages import PageStore
from vrag_jax.embedders.registry import EmbedderConfig, load_embedder
from vrag_jax.indexing.page_vectors import PageVectors
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import build_index

ROOT = Path(__file__).resolve().parents[2]
QUERIES = ['bananas', 'ships in the harbour?', 'x']


@pytest.fixture
def checkpoint(tmp_path):
    with np.load(cases.GOLDENS / 'colqwen2.npz') as stored:
        config, shapes = (json.loads(str(stored[name])) for name in ('config', 'shapes'))
    cases.write_checkpoint(tmp_path / 'colqwen2', config, shapes)
    cases.write_processor(tmp_path / 'colqwen2')
    return tmp_path / 'colqwen2'


@pytest.fixture
def source(make_pdf, tmp_path):
    make_pdf('fruit.pdf', 'apples and pears', 'bananas')
    make_pdf('ships.pdf', 'the harbour')
    return tmp_path / 'in'


def build(source, checkpoint, workdir, count=1):
    """Runs `vrag_jax.main` in `count` processes; returns what each has printed."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    running = []
    for process in range(count):
        place = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(count),
                 'JAX_PROCESS_ID': str(process)} if count > 1 else {}
        running.append(subprocess.Popen(
            [sys.executable, '-m', 'vrag_jax.main', '--config=configs/build_index_colqwen.py',
             f'--workdir={workdir}', f'--config.retrieval.sources={source}',
             f'--config.retrieval.embedders.pages.path={checkpoint}',
             '--config.retrieval.embedders.pages.dtype=float32',
             '--config.retrieval.embedders.pages.visual.max_pixels=0',
             '--config.retrieval.ingestion.dpi=72'],
            cwd=ROOT, env=environment | place, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE))
    ended = [process.communicate(timeout=300) for process in running]
    for process, (_, error) in zip(running, ended, strict=True):
        assert process.returncode == 0, error[-3000:]
    return [printed for printed, _ in ended]


def search(workdir, embedder):
    store = PageStore.open(workdir / 'pages' / 'pages.jsonl')
    return SearchEngine.open(workdir / 'index', store, [embedder]).search(QUERIES, 3)


def test_two_processes_index_as_one_and_search_as_maxsim_by_hand(source, checkpoint, tmp_path):
    [printed] = build(source, checkpoint, tmp_path / 'one')
    assert 'visual_tokens, late_interaction: 3 pages, searched exactly' in printed
    first, second = build(source, checkpoint, tmp_path / 'two', 2)
    # All pages are one shard, which is the first process's.
    assert 'late_interaction: 3 pages' in first and 'late_interaction' not in second
    embedder = load_embedder(EmbedderConfig('colqwen', str(checkpoint)))
    one, two = (search(tmp_path / name, embedder) for name in ('one', 'two'))
    assert [[hit.page_id for hit in hits] for hits in one] == [
        [hit.page_id for hit in hits] for hits in two]
    vectors = PageVectors.open(tmp_path / 'one' / 'vectors' / 'pages')
    pages = [vectors[n].astype(np.float32) for n in range(3)]
    for query, *found in zip(embedder.embed_queries(QUERIES), one, two, strict=True):
        scores = {page_id: (query @ page.T).max(1).sum()
                  for page_id, page in zip(vectors.ids, pages, strict=True)}
        best = sorted(scores, key=scores.get, reverse=True)
        for hits in found:
            assert [hit.page_id for hit in hits] == best
            np.testing.assert_allclose([hit.score for hit in hits],
                                       [scores[page_id] for page_id in best], rtol=1e-5)


def test_pooled_tokens_are_the_means_of_squares(source, checkpoint, tmp_path):
    build_index.run(RunContext(parse(RunConfig, {
        'task': 'build_index', 'data': {'source': 'files'}, 'retrieval': {
            'sources': str(source), 'ingestion': {'dpi': 72, 'workers': 1},
            'retrievers': ('pages',), 'late_interaction': {'tokens': {'pooling': 2}},
            'embedders': {'pages': {'kind': 'colqwen', 'path': str(checkpoint)}}}}),
        tmp_path / 'work'))
    embedder = load_embedder(EmbedderConfig('colqwen', str(checkpoint)))
    store = PageStore.open(tmp_path / 'work' / 'pages' / 'pages.jsonl')
    retriever = SearchEngine.open(tmp_path / 'work' / 'index', store, [embedder]).retriever
    vectors = PageVectors.open(tmp_path / 'work' / 'vectors' / 'pages')
    # 200 x 100 pixels are seen as 64 x 32, of which a token covers 8 x 8. Before them are the
    # bytes of 'user' and a line break between two special tokens.
    rows, columns, before = 4, 8, 7
    for number in range(3):
        tokens, pooled = vectors[number].astype(np.float32), retriever.store.page(number)
        grid = tokens[before:before + rows * columns].reshape(rows // 2, 2, columns // 2, 2, -1)
        squares = grid.sum((1, 3)).reshape(rows * columns // 4, -1)
        squares /= np.linalg.norm(squares, axis=1, keepdims=True)
        expected = np.concatenate([tokens[:before], squares, tokens[before + rows * columns:]])
        np.testing.assert_allclose(pooled, expected, atol=4e-3)  # Of bfloat16.
