"""How pages of several vectors are searched."""

import dataclasses
from typing import Any

from vrag_jax.retrieval.late_interaction.fde import FdeConfig
from vrag_jax.retrieval.late_interaction.token_store import TokenConfig
from vrag_jax.retrieval.single_vector.index import IndexConfig


@dataclasses.dataclass(frozen=True)
class LateInteractionConfig:
    """How pages of several vectors are searched.

    Attributes:
      exact_below: fewer pages, or fewer that a filter allows, are all scored exactly.
      pool: pages that the index of encodings gives for a query, at most; of a small corpus
        the better half, if that is fewer.
      centroids: of which each page notes the ones its tokens are near, to choose the
        candidates from the pool, see `centroids.CentroidTable`; at most: a corpus of n
        pages has 64 sqrt(n); 0 takes the best of the pool by their encodings.
      candidates: pages that are scored exactly.
      tokens: how tokens are kept.
      fde: the encodings.
      index: how encodings are searched. A page's encoding is quantised to 2.5 KB, and by
        default not kept otherwise: the pool is much larger than what is wanted of it.
      recall_queries: for which recall is measured when an index is built; 0 for none.
      seed: of the samples.
    """

    exact_below: int = 2000
    pool: int = 2000
    centroids: int = 4096
    candidates: int = 100
    tokens: TokenConfig = TokenConfig()
    fde: FdeConfig = FdeConfig()
    index: IndexConfig = IndexConfig(exact_below=0, reorder_dtype='', recall_queries=0)
    recall_queries: int = 16
    seed: int = 0

    def __post_init__(self):
        for name in ('exact_below', 'centroids', 'recall_queries'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')
        if not 1 <= self.candidates <= self.pool:
            raise ValueError(f'need 1 <= candidates <= pool, got {self.candidates} and {self.pool}')
        if self.centroids % 8:
            raise ValueError(f'centroids must be a multiple of 8, got {self.centroids}')

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> 'LateInteractionConfig':
        """Reads what `dataclasses.asdict` made."""
        nested = {'tokens': TokenConfig, 'fde': FdeConfig, 'index': IndexConfig}
        return cls(**{name: nested[name](**value) if name in nested else value
                      for name, value in fields.items()})
