"""Weights of a hybrid, chosen by cross-validation over documents."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.evidence import KS, Evidence
from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.records import Question
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.fusion import HybridConfig, HybridRetriever
from vrag_jax.retrieval.retriever import Changes, Hits, Retriever
from vrag_jax.rewards.retrieval import recall

HITS = (1, 5, 10)
NAMES = (*(f'hit@{k}' for k in HITS), *(f'recall@{k}' for k in KS))


class Remembered(Retriever):
    """A retriever that searches for each query once: settings of a hybrid share its hits."""

    kind = 'remembered'

    def __init__(self, retriever: Retriever):
        self._retriever = retriever
        self._known: dict[Any, tuple[list[str], np.ndarray]] = {}
        self.ids, self.reads = retriever.ids, retriever.reads
        self.fingerprint = retriever.fingerprint

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        mask = None if allowed is None else allowed.tobytes()
        new = [query for query in dict.fromkeys(queries) if (query, k, mask) not in self._known]
        if new:
            for query, ids, scores in zip(new, *self._retriever.search(new, k, allowed),
                                          strict=True):
                self._known[query, k, mask] = ids, scores
        found = [self._known[query, k, mask] for query in queries]
        return [ids for ids, _ in found], [scores for _, scores in found]

    def updated(self, changes: Changes) -> 'Remembered':
        return Remembered(self._retriever.updated(changes))

    def write_files(self, folder: Any) -> dict[str, Any]:
        return self._retriever.write_files(folder)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Weights of the parts of a hybrid, and its constant."""

    weights: tuple[float, ...]
    constant: float

    def fuse(self, parts: Sequence[Retriever]) -> Retriever:
        """Returns the parts whose weight is not 0 as one retriever."""
        used = [(part, weight) for part, weight in zip(parts, self.weights, strict=True) if weight]
        if len(used) == 1:
            return used[0][0]
        return HybridRetriever([part for part, _ in used],
                               HybridConfig(tuple(w for _, w in used), self.constant))


def settings(weights: Sequence[Sequence[float]], constants: Sequence[float]) -> Iterator[Setting]:
    """Yields every combination; one that leaves a single part has one constant."""
    for chosen in itertools.product(*weights):
        if any(chosen):
            for constant in constants[:None if sum(map(bool, chosen)) > 1 else 1]:
                yield Setting(chosen, constant)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What cross-validation found.

    Attributes:
      setting: the best on all documents.
      figures: means of `NAMES` over questions of documents that the setting was not chosen on.
      on_all: those of `setting` on all documents.
      folds: the setting of each fold.
    """

    setting: Setting
    figures: Mapping[str, float]
    on_all: Mapping[str, float]
    folds: Sequence[Setting]


def choose(store: PageStore, parts: Sequence[Retriever], questions: Sequence[Question],
           evidence: Sequence[Evidence], documents: Mapping[str, str],
           candidates: Sequence[Setting], folds: int = 9) -> Chosen:
    """Chooses the setting with the best mean of `NAMES`, by cross-validation over documents.

    Args:
      store: the pages.
      parts: retrievers of them.
      questions: that are searched for among all pages.
      evidence: questions that are searched for in their own document.
      documents: of each question, by its uid.
      candidates: the settings.
      folds: parts into which the documents are dealt, in the order of their names.
    """
    known = [Remembered(part) for part in parts]
    tables = [_scores(SearchEngine(store, setting.fuse(known)), questions, evidence)
              for setting in candidates]
    names = sorted({*documents.values(), *(item.document for item in evidence)})
    fold_of = {name: place % folds for place, name in enumerate(names)}
    fold_hits = np.array([fold_of[documents[q.uid]] for q in questions])
    fold_recalls = np.array([fold_of[item.document] for item in evidence])
    domains = np.array([item.domain for item in evidence])

    def means(table: tuple[np.ndarray, np.ndarray], hits: np.ndarray, recalls: np.ndarray
              ) -> np.ndarray:
        chosen = [table[1][recalls & (domains == domain)] for domain in sorted(set(domains))]
        return np.concatenate([table[0][hits].mean(axis=0), np.mean(
            [rows.mean(axis=0) for rows in chosen if len(rows)], axis=0)])

    def best(hits: np.ndarray, recalls: np.ndarray) -> int:
        return int(np.argmax([means(table, hits, recalls).mean() for table in tables]))

    out = np.zeros_like(tables[0][0]), np.zeros_like(tables[0][1])
    of_folds = []
    for fold in range(folds):
        number = best(fold_hits != fold, fold_recalls != fold)
        of_folds.append(candidates[number])
        out[0][fold_hits == fold] = tables[number][0][fold_hits == fold]
        out[1][fold_recalls == fold] = tables[number][1][fold_recalls == fold]
    every = np.ones(len(questions), bool), np.ones(len(evidence), bool)
    number = best(*every)
    return Chosen(candidates[number], dict(zip(NAMES, means(out, *every).tolist(), strict=True)),
                  dict(zip(NAMES, means(tables[number], *every).tolist(), strict=True)), of_folds)


def _scores(engine: SearchEngine, questions: Sequence[Question], evidence: Sequence[Evidence]
            ) -> tuple[np.ndarray, np.ndarray]:
    """Returns `hit@k` of each question and `recall@k` of each piece of evidence."""
    found = engine.search([question.query for question in questions], max(HITS))
    hits = np.array([[float(any(hit.page_id in question.page_ids for hit in ids[:k]))
                      for k in HITS] for question, ids in zip(questions, found, strict=True)])
    recalls = np.zeros((len(evidence), len(KS)))
    for place, item in enumerate(evidence):
        [ids] = engine.search([item.query], max(KS), {'document': item.document})
        recalls[place] = [recall([hit.page_id for hit in ids[:k]], item.page_ids) for k in KS]
    return hits, recalls
