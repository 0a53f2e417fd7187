"""Several retrievers as one, by reciprocal-rank fusion."""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.embedders.interface import Embedder
from vrag_jax.retrieval.retriever import Changes, Hits, QuerySizes, Retriever


@dataclasses.dataclass(frozen=True)
class HybridConfig:
    """How rankings are fused (Cormack et al. 2009).

    Attributes:
      weights: of the retrievers; empty for 1 each.
      constant: a page at rank r (from 1) of a ranking gains weight / (constant + r); pages
        of equal score share the mean of their ranks.
      depth: hits of each retriever that are fused, at least.
    """

    weights: tuple[float, ...] = ()
    constant: float = 60.0
    depth: int = 100

    def __post_init__(self):
        object.__setattr__(self, 'weights', tuple(self.weights))
        if any(weight < 0 for weight in self.weights):
            raise ValueError(f'weights must not be negative, got {self.weights}')
        if self.constant < 0 or self.depth < 1:
            raise ValueError('need constant >= 0 and depth >= 1, got '
                             f'{self.constant} and {self.depth}')


class HybridRetriever(Retriever):
    """Fuses the rankings of retrievers of the same pages; their scores need not compare.

    Args:
      retrievers: two or more.
      config: of the fusion.

    Raises:
      ValueError: if pages or number of weights differ.
    """

    kind = 'hybrid'

    def __init__(self, retrievers: Sequence[Retriever],
                 config: HybridConfig = HybridConfig()):  # noqa: B008 (immutable)
        if len(retrievers) < 2:
            raise ValueError(f'a hybrid needs two retrievers, got {len(retrievers)}')
        if config.weights and len(config.weights) != len(retrievers):
            raise ValueError(f'{len(config.weights)} weights for {len(retrievers)} retrievers')
        self.retrievers = tuple(retrievers)
        self.config = config
        self.reads = frozenset().union(*(r.reads for r in self.retrievers))
        self.fingerprint = hashlib.sha256('\n'.join(
            [repr(config), *(r.fingerprint for r in self.retrievers)]).encode()).hexdigest()
        self.ids = self.retrievers[0].ids
        self._row = {page_id: row for row, page_id in enumerate(self.ids)}
        for other in self.retrievers[1:]:
            different = set(other.ids) ^ set(self._row)
            if different:
                raise ValueError(f'only one of {self.retrievers[0].kind} and {other.kind} holds '
                                 f'page {min(different)!r}')
        # Rows of each retriever's pages, for filters.
        self._orders = [np.array([self._row[i] for i in r.ids]) for r in self.retrievers]

    @property
    def parts(self) -> tuple[Retriever, ...]:
        return self.retrievers

    def describe(self) -> list[str]:
        return [*(line for part in self.retrievers for line in part.describe()),
                f'{self.kind}: of {len(self.retrievers)} by reciprocal rank']

    def warm_up(self, sizes: QuerySizes, k: int) -> None:
        for part in self.retrievers:
            part.warm_up(sizes, k)

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        weights = self.config.weights or (1.0,) * len(self.retrievers)
        totals: list[dict[str, float]] = [defaultdict(float) for _ in queries]
        for retriever, order, weight in zip(self.retrievers, self._orders, weights, strict=True):
            found, scores = retriever.search(queries, max(k, self.config.depth),
                                        None if allowed is None else allowed[order])
            for total, ids, values in zip(totals, found, scores, strict=True):
                gains = weight / (self.config.constant + _ranks(values))
                for page_id, gain in zip(ids, gains.tolist(), strict=True):
                    total[page_id] += gain
        best = [sorted(total, key=lambda i, total=total: (  # type: ignore[misc]
            -total[i], self._row[i]))[:k] for total in totals]
        return best, [np.array([total[i] for i in ids], np.float32)
                      for total, ids in zip(totals, best, strict=True)]

    def updated(self, changes: Changes) -> 'HybridRetriever':
        return HybridRetriever([r.updated(changes) for r in self.retrievers], self.config)

    def write_files(self, folder: Path) -> dict[str, Any]:
        parts = []
        for number, retriever in enumerate(self.retrievers):
            (folder / str(number)).mkdir()
            parts.append({'kind': retriever.kind,
                          'fields': retriever.write_files(folder / str(number))})
        return {'config': dataclasses.asdict(self.config), 'retrievers': parts}

    @classmethod
    def load(cls, folder: Path, fields: dict[str, Any], embedders: Sequence[Embedder],
             read: Callable[..., Retriever]) -> 'HybridRetriever':
        """Reads what `write_files` wrote; `read` is `kinds.read_retriever`, for the parts."""
        try:
            config = HybridConfig(**fields['config'])
            parts = [(part['kind'], part['fields']) for part in fields['retrievers']]
        except (KeyError, TypeError) as error:
            raise ArtifactError(f'{folder}: fields of the hybrid: {error!r}') from error
        return cls([read(kind, folder / str(number), part, embedders)
                    for number, (kind, part) in enumerate(parts)], config)


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Returns the ranks of scores, best first, from 1: of equal ones the mean.

    Their order is that of the corpus, which says nothing of them.
    """
    if not len(scores):
        return np.zeros(0)
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
    ends = np.append(starts[1:], len(scores))
    return np.repeat((starts + 1 + ends) / 2, ends - starts)
