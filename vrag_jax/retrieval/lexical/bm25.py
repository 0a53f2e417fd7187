"""BM25 over the pages' words, in inverted lists."""

import dataclasses
from typing import Any

from vrag_jax.retrieval.lexical.inverted_lists import Weighting
from vrag_jax.retrieval.lexical.retriever import ListsRetriever


@dataclasses.dataclass(frozen=True)
class Bm25Config:
    """Weights of BM25 (Robertson and Zaragoza 2009), idf as Lucene computes it.

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

    @property
    def weighting(self) -> Weighting:
        """The same for inverted lists; Lucene leaves out the factor k1 + 1."""
        word = 1 / (self.k1 + 1)
        return Weighting((word, word * self.phrases, 0.0, word), self.k1, self.b, sublinear=False)


class Bm25Retriever(ListsRetriever[Bm25Config]):
    """Ranks pages by BM25; pages that share no term with a query are no hits.

    Terms are the words of `terms.split_terms`: those of any script, pairs of CJK characters,
    and what only some queries look for. Equal scores are in the order of the pages.
    """

    name = 'bm25'
    kind = 'bm25'
    config_class = Bm25Config

    @classmethod
    def config_of(cls, config: Any) -> Bm25Config:
        return config.bm25
