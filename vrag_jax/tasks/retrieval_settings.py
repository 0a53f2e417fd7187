"""The section of a config about pages and their index."""

import dataclasses
from collections.abc import Mapping

from vrag_jax.embedders.registry import EmbedderConfig
from vrag_jax.ingestion.settings import IngestConfig
from vrag_jax.retrieval.bm25 import Bm25Config
from vrag_jax.retrieval.hybrid import HybridConfig
from vrag_jax.retrieval.index import IndexConfig
from vrag_jax.retrieval.late_interaction import LateInteractionConfig
from vrag_jax.retrieval.ngram_encoder import NgramConfig
from vrag_jax.retrieval.remote import RemoteSearchConfig, check_url

LEXICAL = ('ngram', 'bm25')


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """The page index.

    Attributes:
      retrievers: what finds pages: 'ngram', 'bm25', names of `embedders`; several are fused
        by reciprocal rank.
      encoder: of 'ngram', the text encoder of pages and queries.
      bm25: of 'bm25'.
      embedders: models that make vectors of pages, by names of their own.
      index: of single vectors, those of 'ngram' and of embedders with one a page.
      late_interaction: of embedders with several vectors a page; `tokens.pooling` is of those
        that read images.
      hybrid: how several retrievers are fused.
      index_dir: an index that `build_index` has made, e.g. 'runs/reports/index'; '' keeps
        one in the workdir.
      url: of a search service over the same pages, which is asked instead of searching in
        this process; '' searches here.
      remote: how the service is asked.
      ocr: whether pages without text are read by OCR (extra `ocr`).
      sources: files and folders whose documents `build_index` ingests: separated by commas, or
        a tuple, in which names may have commas; '' and () index the pages of `data`.
      ingestion: how documents become pages.
    """

    retrievers: tuple[str, ...] = ('ngram',)
    encoder: NgramConfig = NgramConfig()
    bm25: Bm25Config = Bm25Config()
    embedders: Mapping[str, EmbedderConfig] = dataclasses.field(default_factory=dict)
    index: IndexConfig = IndexConfig()
    late_interaction: LateInteractionConfig = LateInteractionConfig()
    hybrid: HybridConfig = HybridConfig()
    index_dir: str = ''
    url: str = ''
    remote: RemoteSearchConfig = RemoteSearchConfig()
    ocr: bool = False
    sources: str | tuple[str, ...] = ''
    ingestion: IngestConfig = IngestConfig()

    def __post_init__(self):
        if self.url:
            check_url(self.url)
        if not isinstance(self.sources, str) and '' in self.sources:
            raise ValueError(f"sources: expected paths, got '' in {self.sources}")
        taken = set(LEXICAL) & set(self.embedders)
        if taken:
            raise ValueError(f'embedders: {min(taken)!r} is the name of another retriever')
        names = (*LEXICAL, *self.embedders)
        if not self.retrievers or len(set(self.retrievers)) != len(self.retrievers) or (
                set(self.retrievers) - set(names)):
            raise ValueError(f'retrievers must be some of {names}, got {self.retrievers}')
        unused = sorted(set(self.embedders) - set(self.retrievers))
        if unused:
            raise ValueError(f'embedders.{unused[0]}: is not one of retrievers {self.retrievers}')

        weights = len(self.hybrid.weights)
        if weights and weights != len(self.retrievers):
            raise ValueError(f'hybrid.weights: {weights} weights for {len(self.retrievers)} '
                             f'retrievers {self.retrievers}')

    @property
    def source_paths(self) -> list[str]:
        if not isinstance(self.sources, str):
            return list(self.sources)
        return [path.strip() for path in self.sources.split(',') if path.strip()]
