"""Retrieval by several vectors a page and query: candidates from ScaNN, exact MaxSim of these."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.embedders.interface import Embedder, Grid
from vrag_jax.retrieval.late_interaction.centroids import CentroidTable, sample_tokens
from vrag_jax.retrieval.late_interaction.fde import FdeEncoder
from vrag_jax.retrieval.late_interaction.late_settings import LateInteractionConfig
from vrag_jax.retrieval.late_interaction.maxsim import maxsim, maxsim_all
from vrag_jax.retrieval.late_interaction.token_pages import (
    StorePages,
    perturbed_queries,
    pooled_pages,
    pools,
)
from vrag_jax.retrieval.late_interaction.token_store import TokenStore
from vrag_jax.retrieval.retriever import (
    Changes,
    Hits,
    RetrieverKind,
    find_embedder,
    sample_queries,
    told_recall,
)
from vrag_jax.retrieval.single_vector.index import ScannIndex

_LOG = logging.getLogger(__name__)
_SAMPLE = 1 << 17  # Tokens from which encodings and centroids are learnt.
_PAGES = 256  # Encoded at a time.
_UNUSED = 0.3  # Share of the token files that deleted pages may take.
_MOST_FILES = 64  # Of tokens: each addition makes one.
_LEARN = 0.5  # Share of the pages that may have come since encodings and centroids were learnt.
_DIGITS = 4  # Scores that agree to so many decimals are equal.


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """What finds candidates: encodings, the index over them, and the table of centroids.

    Of the pages the last `since` have come since encodings and centroids were learnt.
    """

    encoder: FdeEncoder
    index: ScannIndex
    centroids: CentroidTable | None
    since: int = 0


class LateInteractionRetriever(RetrieverKind):
    """Ranks pages by MaxSim: the sum over a query's vectors of the best product with a page's.

    Made by `build`, `of_pages`, `updated` or `load`.

    Attributes:
      embedder: makes vectors of queries, and of pages that are added.
      ids: of the pages.
      store: their tokens.
      config: how they are searched.
      recall: what `measure_recall` found when the index was built; None where all pages
        are scored exactly.
    """

    name = 'late_interaction'
    kind = 'late_interaction'
    vectors = 'several'
    embedder: Embedder

    def __init__(self, embedder: Embedder, ids: Sequence[str], store: TokenStore,
                 config: LateInteractionConfig, candidates: _Candidates | None,
                 recall: dict[str, Any] | None = None):
        if not embedder.multi_vector:
            raise ValueError(f'{embedder.kind} makes one vector a page: use a dense retriever')
        self.embedder = embedder
        self.fingerprint = embedder.fingerprint
        self.reads = frozenset({embedder.reads})
        self.ids = tuple(ids)
        self.store = store
        self.config = config
        self.recall = recall
        self._candidates = candidates

    @classmethod
    def build(cls, pages: Changes, config: Any, embedder: Embedder) -> Self:
        settings = config.late_interaction
        return cls.of_pages(embedder, pages.ids, pages.vectors(embedder), settings,
                            _grids(embedder, settings, pages), pages.scratch, pages.queries)

    @classmethod
    def of_pages(cls, embedder: Embedder, ids: Sequence[str], pages: Sequence[np.ndarray],
                 config: LateInteractionConfig = LateInteractionConfig(),  # noqa: B008 (immutable)
                 grids: Sequence[Grid] | None = None, scratch: Path | None = None,
                 queries: Sequence[str] = ()) -> Self:
        """Indexes what an embedder made of pages.

        Args:
          embedder: of several vectors a page.
          ids: of the pages.
          pages: [T, D] unit rows of each, any float dtype; may be memory-mapped.
          config: how they are searched.
          grids: rows and columns of each page's grid of tokens, and how many tokens come
            before it; needed for pooling.
          scratch: where the tokens are written until they are saved, see
            `TokenStore.build`.
          queries: for which recall is measured, `config.recall_queries` of them at most;
            by default for tokens of pages, perturbed.

        Raises:
          ValueError: if numbers do not agree, an id stands twice, a page has no token, or
            a value is not finite.
        """
        ids = tuple(ids)
        if len(set(ids)) != len(ids) or len(ids) != len(pages) or not ids:
            raise ValueError(f'{len(ids)} ids, of which {len(set(ids))} are different, for '
                             f'{len(pages)} pages')
        store = TokenStore.build(pooled_pages(pages, embedder, config.tokens, grids),
                                 pages[0].shape[-1], config.tokens, scratch)
        return cls._indexed(embedder, ids, store, config, queries)

    @classmethod
    def _indexed(cls, embedder: Embedder, ids: tuple[str, ...], store: TokenStore,
                 config: LateInteractionConfig, queries: Sequence[str] = ()
                 ) -> Self:
        if len(ids) < config.exact_below:
            return cls(embedder, ids, store, config, None)
        sample = sample_tokens(StorePages(store), _SAMPLE, config.seed)
        encoder = FdeEncoder.fit(sample, config.fde)
        encodings = _encodings(encoder, StorePages(store))
        index = ScannIndex.build(encodings, ids, encoder.fingerprint, config.index,
                                 keep_vectors=False)
        del encodings
        table = None
        if config.centroids:
            count = min(config.centroids, 8 * math.ceil(8 * math.sqrt(len(ids))))
            table = CentroidTable.fit(sample, count, config.seed)
            table = table.with_pages(StorePages(store))
        retriever = cls(embedder, ids, store, config, _Candidates(encoder, index, table))
        if config.recall_queries:
            given = embedder.embed_queries(sample_queries(queries, config.recall_queries)) if (
                queries) else []
            retriever.recall = retriever.measure_recall([q for q in given if np.any(q)] or None)
        return retriever

    @property
    def exact(self) -> bool:
        """Whether all pages are scored."""
        return self._candidates is None

    def search(self, queries: Sequence[str], k: int, allowed: np.ndarray | None = None) -> Hits:
        found = self.search_vectors(self.embedder.embed_queries(queries), k, allowed)
        return [[self.ids[row] for row in rows] for rows, _ in found], [s for _, s in found]

    def search_vectors(self, queries: Sequence[np.ndarray], k: int,
                       allowed: np.ndarray | None = None
                       ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Finds pages for the vectors of queries.

        Args:
          queries: [T, D] float32 each; one without vectors, or with zeros only, finds nothing.
          k: hits a query, at most.
          allowed: bool [pages]: which may be found; None for all.

        Returns:
          Of each query rows of pages, best first, and their MaxSim float32.
        """
        if k < 1:
            raise ValueError(f'k must be positive, got {k}')
        able = [number for number, query in enumerate(queries) if np.any(query)]
        hits = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
        rows = np.arange(len(self.ids)) if allowed is None else np.flatnonzero(allowed)
        if not able or not len(rows):
            return hits
        vectors = [np.asarray(queries[number], np.float32) for number in able]
        if self._candidates is None or len(rows) < max(self.config.exact_below, k + 1):
            scored = [(rows, scores) for scores in maxsim_all(self.store, vectors, rows)]
        else:
            chosen = self.candidates(vectors, max(k, self.config.candidates), allowed)
            scored = list(zip(chosen, maxsim(self.store, vectors, chosen), strict=True))
        for number, (found, scores) in zip(able, scored, strict=True):
            order = np.lexsort((found, -scores.round(_DIGITS)))[:k]
            hits[number] = found[order], scores[order]
        return hits

    def candidates(self, queries: Sequence[np.ndarray], count: int,
                   allowed: np.ndarray | None = None) -> list[np.ndarray]:
        """Returns rows of pages that may be the best for each query, the likeliest first.

        Args:
          queries: [T, D] float32 each.
          count: rows wanted a query, at most.
          allowed: bool [pages]: which may be found; None for all.
        """
        if self._candidates is None:
            raise ValueError('all pages are scored exactly; there are no candidates')
        parts = self._candidates
        size = count
        if parts.centroids is not None:
            size = max(count, min(self.config.pool, len(self.ids) // 2))
        pools = parts.index.search_rows(parts.encoder.encode_queries(queries), size, allowed)
        if parts.centroids is None:
            return [rows for rows, _ in pools]
        chosen = []
        for query, (rows, _) in zip(queries, pools, strict=True):
            scores = parts.centroids.scores(query, rows)
            chosen.append(rows[np.argsort(-scores, kind='stable')[:count]])
        return chosen

    def measure_recall(self, queries: Sequence[np.ndarray] | None = None, k: int = 10
                       ) -> dict[str, Any]:
        """Compares the candidates with exact search, as `ScannIndex.measure_recall`.

        Args:
          queries: [T, D] each; by default `config.recall_queries` made of 20 tokens of a
            page with noise.
          k: the best pages that are looked for among the candidates.
        """
        source = 'given' if queries is not None else 'perturbed'
        if queries is None:
            queries = perturbed_queries(StorePages(self.store), self.config.recall_queries,
                                        self.config.seed)
        k = min(k, len(self.ids))
        exact = maxsim_all(self.store, queries, np.arange(len(self.ids)))
        chosen = self.candidates(queries, max(k, self.config.candidates))
        best = np.argsort(-exact, axis=1, kind='stable')[:, :k]
        shares = [len(np.intersect1d(a, b)) / k for a, b in zip(best, chosen, strict=True)]
        return {'recall': float(np.mean(shares)), 'k': k, 'queries': len(queries),
                'candidates': self.config.candidates, 'source': source}

    def updated(self, changes: Changes) -> Self:
        """See `Retriever`: tokens, encodings and centroids of pages that stay are not touched.

        Centroids, and what encodings were learnt from, stay those of the corpus at first, until
        half of the pages have come since. Until then pages that are added come last, whatever the
        order of equal hits is to be.
        """
        if not changes:
            return self
        kept = changes.kept_rows(self.ids)
        new_ids = (*(self.ids[row] for row in kept), *changes.ids)
        pages, scratch = changes.vectors(self.embedder), changes.scratch
        grids = _grids(self.embedder, self.config, changes)
        new = TokenStore.build(pooled_pages(pages, self.embedder, self.config.tokens, grids),
                               self.store.dims, self.config.tokens, scratch)
        store = self.store.kept(kept).joined(new)
        if store.unused > _UNUSED or store.files > _MOST_FILES:
            _LOG.info('tokens of %d pages written anew', len(store))
            store = store.compacted(scratch)
        parts = self._candidates
        since = len(changes.added)
        if parts is not None:
            since += int((kept >= len(self.ids) - parts.since).sum())
        if (parts is None or len(new_ids) < self.config.exact_below
                or since > _LEARN * len(new_ids)):
            if changes.order:
                row = {page_id: number for number, page_id in enumerate(new_ids)}
                store = store.kept(np.array([row[i] for i in changes.order]))
                new_ids = tuple(changes.order)
            return self._indexed(self.embedder, new_ids, store, self.config, changes.queries)
        fresh = StorePages(store, len(kept))
        index = parts.index.updated(
            _encodings(parts.encoder, fresh), changes.ids, changes.removed,
            lambda: _encodings(parts.encoder, StorePages(store)))
        table = parts.centroids and parts.centroids.kept(kept).with_pages(fresh)
        return type(self)(self.embedder, new_ids, store, self.config,
                          _Candidates(parts.encoder, index, table, since), self.recall)

    def matches(self, config: Any, embedder: Embedder) -> bool:
        return (self.fingerprint == embedder.fingerprint
                and self.config == config.late_interaction)

    def describe(self) -> list[str]:
        return told_recall(f'{self.embedder.kind}, {self.kind}: {len(self.ids)} pages', self.exact,
                           self.recall)

    def write_files(self, folder: Path) -> dict[str, Any]:
        fields: dict[str, Any] = {
            'ids': list(self.ids), 'recall': self.recall, 'kind': self.embedder.kind,
            'embedder': self.embedder.fingerprint, 'config': dataclasses.asdict(self.config)}
        (folder / 'tokens').mkdir()
        fields['tokens'] = self.store.write_files(folder / 'tokens')
        if self._candidates is not None:
            fields['since'] = self._candidates.since
            for name in ('encoder', 'index', 'centroids'):
                part = getattr(self._candidates, name)
                if part is not None:
                    (folder / name).mkdir()
                    fields[name] = part.write_files(folder / name)
        return fields

    @classmethod
    def load(cls, folder: Path, fields: dict[str, Any], embedders: Sequence[Embedder] = ()
             ) -> Self:
        try:
            ids, config = tuple(fields['ids']), LateInteractionConfig.from_fields(fields['config'])
            embedder = find_embedder(fields['embedder'], fields['kind'], embedders)
            store = TokenStore.from_files(folder / 'tokens', fields['tokens'])
        except (KeyError, TypeError) as error:
            raise ArtifactError(f'{folder}: late interaction: {error!r}') from error
        candidates = None
        if 'encoder' in fields:
            encoder = FdeEncoder.from_files(folder / 'encoder', fields['encoder'])
            index = ScannIndex.from_files(folder / 'index', fields['index'])
            table = CentroidTable.from_files(folder / 'centroids', fields['centroids']) if (
                'centroids' in fields) else None
            if index.encoder != encoder.fingerprint or index.ids != ids or (
                    table is not None and len(table.bits) != len(ids)):
                raise ArtifactError(f'{folder}: encodings, index and pages do not belong together')
            # Indices of before did not count.
            candidates = _Candidates(encoder, index, table, fields.get('since', 0))
        if len(store) != len(ids):
            raise ArtifactError(f'{folder}: tokens of {len(store)} pages for {len(ids)} ids')
        return cls(embedder, ids, store, config, candidates, fields['recall'])


def _grids(embedder: Embedder, config: LateInteractionConfig, pages: Changes
           ) -> Sequence[Grid] | None:
    """Returns the grids of tokens of pages that come; None where nothing is pooled."""
    return embedder.page_grids(pages.added) if pools(embedder, config.tokens) else None


def _encodings(encoder: FdeEncoder, pages: Sequence[np.ndarray]) -> np.ndarray:
    out = np.empty((len(pages), encoder.dims), np.float32)
    for start in range(0, len(pages), _PAGES):
        out[start:start + _PAGES] = encoder.encode_pages(pages[start:start + _PAGES])
    return out
