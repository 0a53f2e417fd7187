"""The section of a config about pages and their index."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.embedders.registry import EmbedderConfig
from vrag_jax.embedders.visual_embedder import VisualConfig
from vrag_jax.retrieval.fusion import HybridConfig
from vrag_jax.retrieval.kinds import kind_names, kind_settings
from vrag_jax.retrieval.late_interaction.late_settings import LateInteractionConfig
from vrag_jax.retrieval.lexical.bm25 import Bm25Config
from vrag_jax.retrieval.lexical.ngram_encoder import NgramConfig
from vrag_jax.retrieval.remote import RemoteSearchConfig, check_url
from vrag_jax.retrieval.single_vector.index import IndexConfig

# Where a text embedder is given and nothing else is said: chosen on mmlongbench_dev by
# cross-validation over documents, which gave BM25 beside these no weight
# (`benchmarks/retrieval_quality.py`, docs/RETRIEVAL.md).
NGRAM_WEIGHT, TEXT_WEIGHT = 1.0, 0.5
FUSION_CONSTANT = 20.0
COLQWEN2 = 'colqwen2'  # Name of the embedder of `colqwen2`.


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """The page index.

    Attributes:
      retrievers: what finds pages: 'ngram', 'bm25', other kinds that are registered
        (`retrieval.kinds.register`), or names of `embedders`; several are fused by reciprocal
        rank. () takes 'ngram' where no embedder is given; 'ngram' and the embedders,
        fused with measured weights, where they read text; embedders that read images alone.
      encoder: of 'ngram', the text encoder of pages and queries.
      bm25: of 'bm25'.
      embedders: models that make vectors of pages, by names of their own.
      colqwen2: directory of a ColQwen2 or ColQwen2.5, the reference's retriever: its vectors of
        page images alone find pages, in bfloat16, in the place of `retrievers` and `embedders`.
      colqwen2_base: directory of its base, where `colqwen2` is a LoRA adapter whose settings
        name none that is on this machine.
      text_embedder: directory of a BERT or XLM-R encoder, or 'minilm', whose vectors of page texts
        are fused with 'ngram'; short for an entry of `embedders`.
      kinds: settings of kinds that are not of this package, by their names.
      index: of single vectors, those of 'ngram' and of embedders with one a page.
      late_interaction: of embedders with several vectors a page; `tokens.pooling` is of those
        that read images.
      hybrid: how several retrievers are fused; where `retrievers` is () and this is the
        default, with the measured weights.
      index_dir: an index that `build_index` has made, e.g. 'runs/reports/index'; '' keeps
        one in the workdir.
      url: of a search service over the same pages, which is asked instead of searching in
        this process; '' searches here.
      remote: how the service is asked.
      ocr: whether pages of a manifest of one's own that have no text are read by OCR (extra
        `ocr`), without which it is an error. With `sources` it is `ingestion.ocr` that says what
        is read; True makes it an error that the extra is missing there, too.
      sources: files and folders whose documents `build_index` ingests: separated by commas, or
        a tuple, in which names may have commas; '' and () index the pages of `data`.
      ingestion: how documents become pages.
    """

    retrievers: tuple[str, ...] = ()
    encoder: NgramConfig = NgramConfig()
    bm25: Bm25Config = Bm25Config()
    embedders: Mapping[str, EmbedderConfig] = dataclasses.field(default_factory=dict)
    colqwen2: str = ''
    colqwen2_base: str = ''
    text_embedder: str = ''
    kinds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
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
        if self.ocr and self.sources and self.ingestion.ocr == 'never':
            raise ValueError("ocr=True and ingestion.ocr='never': with sources the latter says "
                             'what is read by OCR')
        self._take_colqwen2()
        self._take_text_embedder()
        taken = set(kind_names()) & set(self.embedders)
        if taken:
            raise ValueError(f'embedders: {min(taken)!r} is the name of another retriever')
        if not self.retrievers:
            self._choose()
        names = (*kind_names(), *self.embedders)
        if len(set(self.retrievers)) != len(self.retrievers) or (
                set(self.retrievers) - set(names)):
            raise ValueError(f'retrievers must be some of {names}, got {self.retrievers}')
        unused = sorted(set(self.embedders) - set(self.retrievers))
        if unused:
            raise ValueError(f'embedders.{unused[0]}: is not one of retrievers {self.retrievers}')
        object.__setattr__(self, 'kinds', kind_settings(
            self.kinds, [self.kind_name(name) for name in self.retrievers]))
        weights = len(self.hybrid.weights)
        if weights and weights != len(self.retrievers):
            raise ValueError(f'hybrid.weights: {weights} weights for {len(self.retrievers)} '
                             f'retrievers {self.retrievers}')

    def _choose(self) -> None:
        """Sets the retrievers, and how they are fused, where none are named."""
        texts = [name for name, embedder in self.embedders.items() if embedder.kind == 'text']
        if not texts:
            chosen = tuple(self.embedders) or ('ngram',)
        elif len(texts) < len(self.embedders):
            raise ValueError('retrievers: embedders of texts and of images are given; say which '
                             f'are fused, some of {(*kind_names(), *self.embedders)}')
        else:
            chosen = ('ngram', *texts)
            if self.hybrid == HybridConfig():
                weights = (NGRAM_WEIGHT, *[TEXT_WEIGHT / len(texts)] * len(texts))
                object.__setattr__(self, 'hybrid', HybridConfig(weights, FUSION_CONSTANT))
        object.__setattr__(self, 'retrievers', chosen)

    def __str__(self) -> str:
        """One line: what finds pages, for reports."""
        if self.url:
            return f'the search service {self.url}'
        models = {name: f' ({embedder.kind}, {embedder.path})'
                  for name, embedder in self.embedders.items()}
        if len(self.retrievers) == 1:
            return self.retrievers[0] + models.get(self.retrievers[0], '')
        weights = self.hybrid.weights or (1.0,) * len(self.retrievers)
        told = [f'{name} {weight:g}{models.get(name, "")}'
                for name, weight in zip(self.retrievers, weights, strict=True)]
        return f'{", ".join(told)}, fused by reciprocal rank (constant {self.hybrid.constant:g})'

    def _take_colqwen2(self) -> None:
        if not self.colqwen2:
            if self.colqwen2_base:
                raise ValueError('colqwen2_base: there is no colqwen2 whose base it could be')
            return
        chosen = {COLQWEN2: EmbedderConfig(
            'colqwen', self.colqwen2, 'bfloat16', visual=VisualConfig(base=self.colqwen2_base))}
        # Configs name 'ngram' where nothing else is asked for.
        if self.embedders not in ({}, chosen) or (
                self.retrievers not in ((), ('ngram',), (COLQWEN2,))):
            raise ValueError(f'colqwen2: searches alone, but retrievers {self.retrievers} or '
                             f'embedders {tuple(self.embedders)} are given as well; to fuse it '
                             "with others make it one of embedders, of kind 'colqwen'")
        object.__setattr__(self, 'embedders', chosen)
        object.__setattr__(self, 'retrievers', (COLQWEN2,))

    def _take_text_embedder(self) -> None:
        if not self.text_embedder:
            return
        name = Path(self.text_embedder).resolve().name
        chosen = {name: EmbedderConfig('text', self.text_embedder)}
        if self.embedders not in ({}, chosen) or (
                self.retrievers not in ((), ('ngram',), ('ngram', name))):
            raise ValueError(f'text_embedder: is fused with ngram, but retrievers '
                             f'{self.retrievers} or embedders {tuple(self.embedders)} are given as '
                             "well; to fuse others make it one of embedders, of kind 'text'")
        object.__setattr__(self, 'embedders', chosen)
        object.__setattr__(self, 'retrievers', ())  # `_choose` takes both, with their weights.

    def kind_name(self, name: str) -> str:
        """Returns the kind of one of the retrievers; '' is that of its embedder's vectors."""
        return self.embedders[name].retriever if name in self.embedders else name

    def embedder_field(self, name: str) -> str:
        """Returns the field that gives an embedder's directory, for messages."""
        if self.colqwen2 or self.text_embedder:
            return 'colqwen2' if self.colqwen2 else 'text_embedder'
        return f'embedders.{name}.path'

    @property
    def source_paths(self) -> list[str]:
        if not isinstance(self.sources, str):
            return list(self.sources)
        return [path.strip() for path in self.sources.split(',') if path.strip()]
