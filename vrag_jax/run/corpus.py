"""Pages, their index and questions, from the config."""

import dataclasses
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vrag_jax.config import naming
from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.datasets import read_questions, split_sources
from vrag_jax.data.pageworld import files as pageworld
from vrag_jax.data.pageworld.layout import PageSpec
from vrag_jax.data.records import Question, with_unique_uids
from vrag_jax.embedders.interface import Embedder
from vrag_jax.evaluation.retrieval_quality import evaluate_retrieval
from vrag_jax.experts.scripted import STYLES, ExpertState, ScriptedExpert
from vrag_jax.indexing.build import open_engine
from vrag_jax.perception.image_ops import PixelLimits, show_page
from vrag_jax.retrieval.page_search import PageSearch
from vrag_jax.retrieval.remote import RemoteSearch
from vrag_jax.run.references import report_references
from vrag_jax.run.run_config import RunConfig

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Pages, index and questions.

    Attributes:
      store: the pages.
      engine: search over them.
      questions: by split: 'train', 'validation', 'test'.
      layouts: what stands on each page of a PageWorld; empty for real pages.
    """

    store: PageStore
    engine: PageSearch
    questions: Mapping[str, list[Question]]
    layouts: Mapping[str, PageSpec]


def build_corpus(config: RunConfig, workdir: Path,
                 embedders: Mapping[str, Embedder] | None = None) -> Corpus:
    """Makes or opens the pages, indexes them, reads the questions.

    Args:
      config: which data.
      workdir: a generated PageWorld and the index are kept in it.
      embedders: of the index, by name, if they are loaded already.
    """
    layouts: Mapping[str, PageSpec] = {}
    if config.data.source == 'pageworld':
        world = pageworld.build(config.data.pageworld, workdir / 'pageworld')
        store, layouts = PageStore.open(world.manifest), world.layouts
        questions = dict(world.questions)
    else:
        with naming('config.data.manifest'):
            store = PageStore.open(Path(config.data.manifest))
        questions = _load_splits(config, store)
    engine = open_search(config, store, workdir, embedders,
                         [question.query for question in questions['test']])
    return Corpus(store, engine, questions, layouts)


def page_manifest(config: RunConfig, workdir: Path) -> Path:
    """Returns the manifest of the pages; a generated PageWorld is made if it is not there."""
    if config.data.source == 'pageworld':
        return pageworld.build(config.data.pageworld, workdir / 'pageworld').manifest
    return Path(config.data.manifest)


def _load_splits(config: RunConfig, store: PageStore) -> dict[str, list[Question]]:
    """Reads the questions; each source stands in for the other where one is not given."""
    read = {}
    for name, field in (('train', 'train_questions'), ('test', 'eval_questions')):
        text = getattr(config.data, field)
        if text:
            with naming(f'config.data.{field}'):
                questions = [q for source in split_sources(text)
                             for q in read_questions(source, store)]
            read[name] = list(with_unique_uids(questions, text).values())
            report_references(field, text, read[name], store)
    if not read:
        return {'train': [], 'validation': [], 'test': []}
    train, test = read.get('train', read.get('test')), read.get('test', read.get('train'))
    assert train is not None and test is not None
    return {'train': train, 'validation': test, 'test': test}


def open_search(config: RunConfig, store: PageStore, workdir: Path,
                embedders: Mapping[str, Embedder] | None = None,
                queries: Sequence[str] = ()) -> PageSearch:
    """Opens the index in this process or, with `retrieval.url`, asks a service.

    Where the index is built its recall is measured for `queries`.

    Raises:
      SearchServiceError: if the service does not answer.
    """
    if not config.retrieval.url:
        return open_engine(config.retrieval, store, workdir, embedders, queries)
    remote = RemoteSearch(config.retrieval.url, store, config.retrieval.remote)
    _LOG.info('search service %s: %d pages', remote.url, remote.check())
    return remote


def report_retrieval(corpus: Corpus) -> dict[str, float]:
    """Prints and returns the retrieval quality on the test questions, `{}` without any."""
    questions = [q for q in corpus.questions['test'] if q.page_ids]
    if not questions:
        return {}
    quality = evaluate_retrieval(corpus.engine, questions)
    figures = ', '.join(f'{name} {value:.3f}' for name, value in quality.items())
    print(f'retrieval over {len(corpus.store)} pages, {len(questions)} questions: {figures}')
    return quality


def tokenizer_texts(corpus: Corpus, limits: PixelLimits, count: int = 1500) -> Iterator[str]:
    """Yields questions and expert turns of the training split, to train a tokenizer on."""
    expert = ScriptedExpert(corpus.layouts, STYLES['careful'])
    rng = random.Random(0)
    questions = corpus.questions['train']
    for question in rng.sample(questions, min(count, len(questions))):
        yield question.query
        yield expert.act(question, ExpertState())
        page_id = question.page_ids[0]
        _, frame = show_page(corpus.store.image(page_id), page_id, limits)
        yield expert.act(question, ExpertState([frame], 1))


def position_phrases(corpus: Corpus) -> list[str]:
    """Returns the names of the places on PageWorld's pages, such as 'top left'.

    Where one stands, another could have stood: as one token each they are read and
    copied at once, instead of word by word.
    """
    return sorted({
        panel.position for page in corpus.layouts.values() for panel in page.panels
        if ' ' in panel.position})
