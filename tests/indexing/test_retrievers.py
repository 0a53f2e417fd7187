"""An index of a run: updated where pages change, and never taken for one of other settings."""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.embedders.fake import WordEmbedder
from vrag_jax.config import parse
from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.data.records import Question, save_questions
from vrag_jax.embedders.registry import EmbedderConfig
from vrag_jax.indexing import build as retrievers
from vrag_jax.indexing.build import embed_pages, is_of, open_engine
from vrag_jax.indexing.page_vectors import PageVectors
from vrag_jax.indexing.retrieval_config import RetrievalConfig
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.fusion import HybridConfig
from vrag_jax.retrieval.late_interaction.fde import FdeConfig
from vrag_jax.retrieval.late_interaction.late_settings import LateInteractionConfig
from vrag_jax.retrieval.late_interaction.retriever import LateInteractionRetriever
from vrag_jax.retrieval.late_interaction.token_store import TokenConfig
from vrag_jax.retrieval.single_vector.index import IndexConfig
from vrag_jax.retrieval.single_vector.retriever import DenseRetriever
from vrag_jax.retrieval.stored_index import StoredIndex
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import build_index

QUERIES = ['word3 of page7', 'word0 word5', 'word9 page1 new', 'replaced']
CANDIDATES = LateInteractionConfig(exact_below=10, pool=20, centroids=64, candidates=10,
                                   fde=FdeConfig(8, 2, 2), recall_queries=4)


class ImageWords(WordEmbedder):
    """As if each word were a token of the image, in rows of two."""

    reads = 'image'

    def page_grids(self, pages):
        return [(len(page.text.split()) // 2, 2, 0) for page in pages]


def page(number, text=None, **more):
    words = np.random.default_rng(number).integers(12, size=4 + number % 3)
    file = f'{number}.png' if text is None else f'{number}_other.png'
    text = text or ' '.join(f'word{w}' for w in words) + f' page{number}'
    return Page(f'd{number:02}_1', f'd{number:02}', 1, file, 8, 6, text, **more)


def make_store(folder, pages):
    folder.mkdir(exist_ok=True)
    for entry in pages:
        color = sum(entry.text.encode()) % 256, sum(entry.text.encode()) // 256, 0
        Image.new('RGB', (8, 6), color).save(folder / entry.file)
    PageStore.write(folder / 'pages.jsonl', pages)
    return PageStore.open(folder / 'pages.jsonl')


def loaded():
    return {'late': WordEmbedder(fingerprint='late'),
            'dense': WordEmbedder(False, fingerprint='dense')}


def config_of(*names, **more):
    return RetrievalConfig(retrievers=names, embedders={
        name: EmbedderConfig() for name in names if name not in ('ngram', 'bm25')}, **more)


def open_with(config, store, workdir, queries=()):
    """Embeds and opens, as `build_index` does; returns the engine and pages embedded by name."""
    embedders = {name: e for name, e in loaded().items() if name in config.retrievers}
    embed_pages(embedders, store, [p.text for p in store], workdir)
    engine = open_engine(config, store, workdir, embedders, queries)
    return engine, {name: sorted(embedder.embedded) for name, embedder in embedders.items()}


def hits(engine, k=8):
    return [[(hit.page_id, round(hit.score, 5)) for hit in found]
            for found in engine.search(QUERIES, k)]


@pytest.fixture
def counted(monkeypatch):
    """How often vectors of models were indexed from the beginning."""
    calls = Counter()

    def count(cls, name):
        made = getattr(cls, name)

        def call(*args, **more):
            calls[cls.kind] += 1
            return made(*args, **more)

        monkeypatch.setattr(cls, name, call)

    count(LateInteractionRetriever, 'of_pages')
    count(DenseRetriever, 'build')
    return calls


BEFORE = [page(n) for n in range(5, 30)]
# Documents before, between and after the others come; one is replaced, two go.
AFTER = sorted([*(p for p in BEFORE if p.page_id not in ('d06_1', 'd20_1', 'd28_1')), page(1),
                page(20, 'replaced words of a page'), page(40)], key=lambda p: p.page_id)


@pytest.mark.parametrize('names', [('late',), ('dense',), ('ngram', 'bm25', 'late', 'dense')])
def test_an_updated_index_finds_what_a_new_one_does(names, counted, tmp_path):
    config = config_of(*names)
    open_with(config, make_store(tmp_path / 'pages', BEFORE), tmp_path / 'work')
    built = Counter(counted)
    store = make_store(tmp_path / 'pages', AFTER)
    engine, embedded = open_with(config, store, tmp_path / 'work')
    assert counted == built
    assert all(ids == ['d01_1', 'd20_1', 'd40_1'] for ids in embedded.values())
    fresh, _ = open_with(config, store, tmp_path / 'fresh')
    assert counted == built + built
    again, embedded = open_with(config, store, tmp_path / 'work')  # As it was saved.
    assert hits(engine) == hits(again) == hits(fresh)
    assert engine.retriever.ids == again.retriever.ids == fresh.retriever.ids
    assert not any(embedded.values())


def test_candidates_are_found_in_updates_and_learnt_anew_when_most_pages_are_new(tmp_path, counted):
    config = config_of('late', late_interaction=CANDIDATES)
    engine, _ = open_with(config, make_store(tmp_path / 'pages', BEFORE), tmp_path / 'work')
    centroids = engine.retriever._candidates.centroids.centroids
    store = make_store(tmp_path / 'pages', AFTER)
    engine, _ = open_with(config, store, tmp_path / 'work')
    parts = engine.retriever._candidates
    assert counted == {'late_interaction': 1} and parts.since == 3 and len(store) == 25
    np.testing.assert_array_equal(parts.centroids.centroids, centroids)
    assert engine.search(['replaced words of a page'], 1)[0][0].page_id == 'd20_1'
    more = [*AFTER, *(page(n) for n in range(50, 60))]
    engine, _ = open_with(config, make_store(tmp_path / 'pages', more), tmp_path / 'work')
    assert engine.retriever._candidates.since == 13
    more += [page(n) for n in range(60, 75)]
    engine, embedded = open_with(config, make_store(tmp_path / 'pages', more), tmp_path / 'work')
    # 28 of 50 have come since; their tokens are where they were.
    parts = engine.retriever._candidates
    assert counted == {'late_interaction': 1} and parts.since == 0
    assert (parts.centroids.centroids != centroids).any() and len(embedded['late']) == 15


def test_an_index_of_which_little_is_left_is_built_anew(tmp_path, counted):
    config = config_of('late')
    open_with(config, make_store(tmp_path / 'pages', BEFORE), tmp_path / 'work')
    others = [*BEFORE[:10], *(page(n) for n in range(50, 61))]
    _, embedded = open_with(config, make_store(tmp_path / 'pages', others), tmp_path / 'work')
    assert counted == {'late_interaction': 2} and len(embedded['late']) == 11


def test_metadata_and_order_alone_rewrite_nothing(tmp_path):
    config = config_of('ngram', 'late')
    before, _ = open_with(config, make_store(tmp_path / 'pages', BEFORE), tmp_path / 'work')
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / 'work' / 'index').rglob('*')}
    rows = tmp_path / 'work' / 'vectors' / 'late'
    pages = [dataclasses.replace(p, metadata={'year': 2000 + n})
             for n, p in enumerate(BEFORE)]
    engine, embedded = open_with(config, make_store(tmp_path / 'pages', pages), tmp_path / 'work')
    [hit] = engine.search(['word5'], 1, {'year': 2007})[0]
    assert hit.page_id == pages[7].page_id and hits(engine) == hits(before)
    stamps = {p: p.stat().st_mtime_ns for p in rows.rglob('*') if p.is_file()}
    engine, embedded = open_with(
        config, make_store(tmp_path / 'pages', pages[::-1]), tmp_path / 'work')
    assert hits(engine) == hits(before) and embedded == {'late': []}
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / 'work' / 'index').rglob('*')}
    # The order of vectors is that of the pages, but the rows stay.
    [file] = rows.glob('data-*/rows*.bin')
    assert file.stat().st_mtime_ns in stamps.values()


def test_only_what_the_retriever_reads_counts(tmp_path):
    store = make_store(tmp_path / 'pages', BEFORE)
    for name, embedder, other in (
            ('text', WordEmbedder(), {'file': 'other.png'}),
            ('image', ImageWords(), {'text': 'x'})):
        config, embedders = config_of(name), {name: embedder}
        open_engine(config, store, tmp_path / name, embedders)
        for change, opens in ((other, True), ({'file': 'o.png', 'text': 'x'}, False)):
            pages = [dataclasses.replace(BEFORE[0], **change), *BEFORE[1:]]
            other_store = PageStore(store.folder, pages)
            if opens:
                SearchEngine.open(tmp_path / name / 'index', other_store, [embedder])
                continue
            with pytest.raises(ArtifactError, match=f"the {name} .*of 'd05_1' and 0 more"):
                SearchEngine.open(tmp_path / name / 'index', other_store, [embedder])
    store.path('d05_1').write_bytes(b'another file of that name')
    SearchEngine.open(tmp_path / 'text' / 'index', store, [WordEmbedder()])
    with pytest.raises(ArtifactError, match="the image .*of 'd05_1' and 0 more"):
        SearchEngine.open(tmp_path / 'image' / 'index', store, [ImageWords()])


def test_rows_of_before_are_linked_until_many_are_unused(tmp_path):
    config, folder = config_of('late'), tmp_path / 'work' / 'vectors' / 'late'

    def vectors(pages):
        open_with(config, make_store(tmp_path / 'pages', pages), tmp_path / 'work')
        found = PageVectors.open(folder)
        for number, rows in enumerate(WordEmbedder().embed_queries([p.text for p in pages])):
            np.testing.assert_allclose(found[number].astype(np.float32), rows, atol=4e-3)
        return [os.stat(path).st_ino for path in found.paths], found

    [first], _ = vectors(BEFORE)
    files, found = vectors(AFTER)
    assert len(files) == 2 and files[0] == first
    assert len(found.files[1]) == sum(len(p.text.split()) for p in AFTER if p not in BEFORE)
    copied = [*AFTER, dataclasses.replace(AFTER[0], page_id='copy', page=2)]
    assert vectors(copied)[0] == files
    files, _ = vectors(AFTER[:15])
    assert len(files) == 1 and files[0] != first


def test_vectors_and_indices_of_before_are_read(tmp_path):
    config, work = config_of('late'), tmp_path / 'work'
    store = make_store(tmp_path / 'pages', BEFORE)
    engine, _ = open_with(config, store, work)
    # As they were written: vectors page after page, and an index that knew its pages by one
    # fingerprint, which is built again.
    for directory, change in ((work / 'vectors' / 'late', ('files', None)),
                              (work / 'index', ('pages', store.fingerprint))):
        manifest = json.loads((directory / 'manifest.json').read_text())
        data = directory / manifest['data']
        for name in ('pages.json', 'page_keys.json'):
            if (data / name).is_file():
                (data / name).unlink()
                del manifest['files'][name], manifest['sizes'][name]
        if change[1] is None:
            del manifest['fields']['files']
            vectors = [WordEmbedder()._vectors(p.text) for p in BEFORE]
            (data / 'pages.json').write_text(json.dumps({
                'ids': store.ids, 'counts': [len(v) for v in vectors],
                'keys': retrievers.content_keys('text', store, [p.text for p in store])}))
            manifest['files']['pages.json'] = checksum(data / 'pages.json')
        else:
            manifest['fields']['pages'] = change[1]
        (directory / 'manifest.json').write_text(json.dumps(manifest))
    again, embedded = open_with(config, store, work)
    assert hits(again) == hits(engine) and embedded == {'late': []}
    engine, embedded = open_with(config, make_store(tmp_path / 'pages', AFTER), work)
    assert len(embedded['late']) == 3 and engine.search(['replaced'], 1)[0][0].page_id == 'd20_1'


def checksum(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_pages_added_by_hand_are_those_of_the_new_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'nowhere'))
    store = make_store(tmp_path / 'pages', BEFORE)
    engine, _ = open_with(config_of('late'), store, tmp_path / 'work')
    engine.add([page(1)], scratch=tmp_path)
    engine.delete(['d06_1'], scratch=tmp_path)
    engine.save(tmp_path / 'work' / 'index')
    pages = sorted([page(1), *(p for p in BEFORE if p.page_id != 'd06_1')],
                   key=lambda p: p.page_id)
    now = make_store(tmp_path / 'pages', pages)
    assert hits(SearchEngine.open(tmp_path / 'work' / 'index', now, [loaded()['late']])) == (
        hits(engine))
    # And the other way round: what is stored is brought up to date.
    later = make_store(tmp_path / 'pages', AFTER)
    stored = StoredIndex.read(tmp_path / 'work' / 'index', [loaded()['late']])
    updated = SearchEngine(later, stored.retriever.updated(stored.changes(
        later, retrievers.contents(later, [p.text for p in later]), {'text'}, scratch=tmp_path)))
    assert hits(updated) == hits(open_with(config_of('late'), later, tmp_path / 'fresh')[0])


def test_embedders_in_another_order_are_other_settings(tmp_path):
    store = make_store(tmp_path / 'pages', BEFORE)
    weights = HybridConfig(weights=(1.0, 0.2))
    config = config_of('late', 'dense', hybrid=weights)
    engine, _ = open_with(config, store, tmp_path / 'work')
    other = config_of('dense', 'late', hybrid=weights)
    assert is_of(engine.retriever, config, loaded())
    assert not is_of(engine.retriever, other, loaded())
    swapped, embedded = open_with(other, store, tmp_path / 'work')
    assert [part.kind for part in swapped.retriever.retrievers] == ['dense', 'late_interaction']
    two = {name: WordEmbedder(fingerprint=name) for name in ('a', 'b')}
    built = open_engine(config_of('a', 'b'), store, tmp_path / 'two', two).retriever
    assert not is_of(built, config_of('b', 'a'), two) and is_of(built, config_of('a', 'b'), two)


def test_pooling_is_of_images_only(tmp_path):
    store = make_store(tmp_path / 'pages', BEFORE)
    config = config_of('pages', 'late', late_interaction=LateInteractionConfig(
        tokens=TokenConfig(pooling=2)))
    embedders = {'pages': ImageWords(fingerprint='image'), 'late': WordEmbedder()}
    engine = open_engine(config, store, tmp_path / 'work', embedders)
    image, text = engine.retriever.retrievers
    counts = np.array([len(p.text.split()) for p in BEFORE])
    np.testing.assert_array_equal(text.store.table[:, 3], counts)
    assert (image.store.table[:, 3] < counts).all()
    assert is_of(engine.retriever, config, embedders)
    later = make_store(tmp_path / 'pages', AFTER)
    updated = open_engine(config, later, tmp_path / 'work', embedders)
    assert hits(updated) == hits(open_engine(config, later, tmp_path / 'fresh', embedders))


def test_tokens_are_written_beside_the_index_and_nothing_is_left(tmp_path, monkeypatch):
    index = tmp_path / 'work' / 'index'
    killed = index / 'scratch' / 'tokens-killed'
    killed.mkdir(parents=True)
    (killed / 'tokens.bin').write_bytes(b'x' * 100)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'nowhere'))
    for pages in (BEFORE, AFTER, AFTER[:12]):
        engine, _ = open_with(config_of('late'), make_store(tmp_path / 'pages', pages),
                              tmp_path / 'work')
        assert {p.name for p in index.iterdir() if p.is_dir()} == {
            json.loads((index / 'manifest.json').read_text())['data']}
        engine.save(tmp_path / 'copy')  # Though the files it was made of are gone.
        assert hits(SearchEngine.open(tmp_path / 'copy', engine.store,
                                      list(loaded().values()))) == hits(engine)


def test_recall_is_measured_for_given_queries(tmp_path):
    config = config_of('ngram', 'dense', 'late', late_interaction=CANDIDATES,
                       index=IndexConfig(exact_below=10, block_dims=1, recall_queries=3))
    store = make_store(tmp_path / 'pages', BEFORE)
    engine, _ = open_with(config, store, tmp_path / 'work', [*QUERIES, *QUERIES, 'word7'])
    ngram, dense, late = engine.retriever.retrievers
    for recall, most in ((ngram.index.recall, 3), (dense.index.recall, 3), (late.recall, 4)):
        assert recall['source'] == 'given' and 2 <= recall['queries'] <= most
    lines = engine.retriever.describe()
    assert len(lines) == 4
    for line, recall in zip(lines, (ngram.index.recall, dense.index.recall, late.recall),
                            strict=False):
        assert line.endswith(
            f'recall@10 of the index against exact search with the same vectors '
            f'{recall["recall"]:.3f}, by {recall["queries"]} queries')
    none, _ = open_with(config, store, tmp_path / 'none')
    assert none.retriever.retrievers[2].recall['source'] == 'perturbed'
    # Updates do not measure; an index that is built anew in one does.
    updated, _ = open_with(config, make_store(tmp_path / 'pages', AFTER), tmp_path / 'none',
                           QUERIES)
    _, dense, late = updated.retriever.retrievers
    assert dense.index.recall['source'] == 'given'  # 5 changes of 25 are a fifth.
    assert late.recall['source'] == 'perturbed'


def test_build_index_measures_recall_for_its_questions(tmp_path, capsys):
    make_store(tmp_path / 'pages', BEFORE)
    save_questions(tmp_path / 'questions.json', [
        Question(f'q{n}', p.text, 'x', page_ids=(p.page_id,)) for n, p in enumerate(BEFORE)])
    build_index.run(RunContext(parse(RunConfig, {
        'task': 'build_index', 'data': {
            'source': 'files', 'manifest': str(tmp_path / 'pages' / 'pages.jsonl'),
            'eval_questions': str(tmp_path / 'questions.json')},
        'retrieval': {'index': {'exact_below': 10, 'recall_queries': 7}}}), tmp_path / 'work'))
    recall = StoredIndex.read(tmp_path / 'work' / 'index').retriever.index.recall
    assert (recall['source'], recall['queries']) == ('given', 7)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'search: by ngram'
    assert any('recall@10 of the index against exact search with the same vectors' in line
               for line in lines)


def test_a_run_says_what_searches_when_it_opens_its_pages(tmp_path, capsys):
    make_store(tmp_path / 'pages', BEFORE)
    space = RunContext(parse(RunConfig, {
        'task': 'evaluate', 'data': {
            'source': 'files', 'manifest': str(tmp_path / 'pages' / 'pages.jsonl')}}),
        tmp_path / 'work')
    assert len(space.corpus.store) == len(BEFORE)
    assert capsys.readouterr().out.splitlines() == ['search: by ngram']
