"""No query waits for the compiler once a service listens."""

import json

import numpy as np
import pytest

from tests.embedders import golden_cases as cases
from tests.serving.test_server import start
from vrag_jax.embedders.text_embedder import TextEmbedder, TextEmbedderConfig
from vrag_jax.retrieval.fusion import HybridRetriever
from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever
from vrag_jax.retrieval.single_vector.retriever import DenseRetriever
from vrag_jax.serving.service_config import WarmUpConfig
from vrag_jax.serving.warm_up import warm_up

TEXTS = ['chart of revenue', 'the left page', 'revenue grows']


@pytest.fixture
def embedder(tmp_path):
    """A tiny BERT that reads 24 tokens; 128 tokens a batch, so that rows differ by length."""
    with np.load(cases.GOLDENS / 'bert.npz') as golden:
        shapes = json.loads(str(golden['shapes']))
    cases.write_checkpoint(tmp_path / 'bert', cases.bert_config('bert'), shapes)
    cases.word_tokenizer().save(str(tmp_path / 'bert' / 'tokenizer.json'))
    return TextEmbedder(tmp_path / 'bert', TextEmbedderConfig(
        pooling='mean', max_length=24, overlap=0, windows='mean'), batch_tokens=128)


def retriever_of(embedder):
    ids = [f'p{n}' for n in range(len(TEXTS))]
    vectors = np.concatenate(embedder.embed_queries(TEXTS))
    return HybridRetriever([DenseRetriever.of_vectors(embedder, ids, vectors),
                            Bm25Retriever.of_texts(ids, TEXTS)])


def test_no_size_of_queries_is_compiled_afterwards(embedder, capsys):
    retriever = retriever_of(embedder)
    assert warm_up(retriever, 3, WarmUpConfig(tokens=64, queries=32)).startswith('warmed up in ')
    # Of a hybrid, too, it is said while it goes on.
    assert capsys.readouterr().out.startswith(
        'warming up: text is compiled for up to 32 queries of up to 64 tokens, in at most 300 s')
    warmed = embedder._run._cache_size()
    assert warmed >= 5
    for count in range(1, 33):
        for words in (1, 5, 13, 14, 15, 18, 22, 100):
            retriever.search([' '.join(['chart'] * words)] * count, 3)
    assert embedder._run._cache_size() == warmed


def test_what_there_was_no_time_for_is_told(embedder):
    told = warm_up(retriever_of(embedder), 3, WarmUpConfig(tokens=64, seconds=1e-9))
    assert 'sizes of queries are left' in told and 'serving.warm_up.seconds' in told


def test_a_service_says_how_long_it_took_before_it_listens(make_corpus, tmp_path):
    folder = make_corpus()
    process = start(tmp_path / 'run', '--config.data.source=files', '--config.serving.port=0',
                    f'--config.data.manifest={folder / "pages.jsonl"}')
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith('serving'):
                break
        assert lines[-2].startswith('warmed up in ') and lines[-1].startswith('serving ')
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
