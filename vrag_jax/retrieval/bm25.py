"""BM25 over the pages' words, by the library bm25s."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.retrieval.artifact import ArtifactError
from vrag_jax.retrieval.retriever import Changes, Hits
from vrag_jax.retrieval.terms import split_terms


@dataclasses.dataclass(frozen=True)
class Bm25Config:
    """Weights of BM25 (Robertson and Zaragoza 2009), as Lucene computes it.

    Attributes:
      k1, b: saturation and length normalisation.
      phrases: pairs of neighbouring words are terms, too.
    """

    k1: float = 1.2
    b: float = 0.75
    phrases: bool = False

    def __post_init__(self):
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise ValueError(f'need k1 >= 0 and b in [0, 1], got {self.k1} and {self.b}')


class Bm25Retriever:
    """Ranks pages by BM25; pages that share no term with a query are no hits.

    Terms are those of `terms.split_terms`: English words, pairs of CJK characters. Equal
    scores are in the order of the pages.

    Args:
      model: an index of bm25s over the pages' terms.
      ids: of the pages.
      config: of the index.
      fingerprint: of config and texts.
    """

    kind = 'bm25'
    reads = frozenset({'text'})

    def __init__(self, model: Any, ids: Sequence[str], config: Bm25Config,
                 fingerprint: str):
        self.ids = tuple(ids)
        self.config = config
        self.fingerprint = fingerprint
        self._model = model

    @classmethod
    def build(cls, ids: Sequence[str], texts: Sequence[str],
              config: Bm25Config = Bm25Config()) -> 'Bm25Retriever':  # noqa: B008 (immutable)
        """Indexes texts.

        Raises:
          ValueError: if there is not one text an id, or none holds a word.
        """
        if len(ids) != len(texts):
            raise ValueError(f'{len(texts)} texts for {len(ids)} pages')
        terms = [_terms(text, config) for text in texts]
        if not any(terms):
            raise ValueError(f'none of the {len(texts)} page texts holds a word; scanned pages '
                             'have text only with OCR (config.retrieval.ocr=True)')
        # At import it computes with JAX, before processes can be connected to each other.
        import bm25s

        model = bm25s.BM25(k1=config.k1, b=config.b, method='lucene')
        model.index(terms, show_progress=False)
        digest = hashlib.sha256(repr(config).encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        return cls(model, ids, config, digest.hexdigest())

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        ids, found = [], []
        for query in queries:
            terms = [term for term in _terms(query, self.config) if term in self._model.vocab_dict]
            scores = np.zeros(len(self.ids), np.float32)
            if terms:
                scores = np.asarray(self._model.get_scores(terms), np.float32)
            if allowed is not None:
                scores = np.where(allowed, scores, 0)
            rows = np.flatnonzero(scores > 0)
            rows = rows[np.argsort(-scores[rows], kind='stable')[:k]]
            ids.append([self.ids[row] for row in rows])
            found.append(scores[rows])
        return ids, found

    def updated(self, changes: Changes) -> 'Bm25Retriever':
        # Weights of terms depend on all pages.
        pages = changes.pages()
        return Bm25Retriever.build([page.page_id for page in pages],
                                   [page.text for page in pages], self.config)

    def write_files(self, folder: Path) -> dict[str, Any]:
        self._model.save(folder / 'bm25', show_progress=False)
        return {'ids': list(self.ids), 'config': dataclasses.asdict(self.config),
                'fingerprint': self.fingerprint}

    @classmethod
    def from_files(cls, folder: Path, fields: dict[str, Any], embedders: Any = ()
                   ) -> 'Bm25Retriever':
        import bm25s

        try:
            config = Bm25Config(**fields['config'])
            model = bm25s.BM25.load(folder / 'bm25', load_vocab=True)
            ids, fingerprint = fields['ids'], fields['fingerprint']
            pages = model.scores['num_docs']
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f'{folder}: BM25: {error!r}') from error
        if pages != len(ids):
            raise ArtifactError(f'{folder}: holds {pages} texts for {len(ids)} ids')
        return cls(model, ids, config, fingerprint)


def _terms(text: str, config: Bm25Config) -> list[str]:
    terms = split_terms(text)
    return [*terms.words, *(terms.phrases if config.phrases else ())]
