"""The task build_index: documents in, pages and an index out, again and again."""

import json

import numpy as np
import pytest
from PIL import Image

from vrag_jax.config import ConfigError, parse
from vrag_jax.corpus.pages import PageStore
from vrag_jax.indexing import build as retrievers
from vrag_jax.indexing.build import open_engine
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import build_index
from vrag_jax.tasks.registry import check


def config_of(source, **retrieval):
    return parse(RunConfig, {
        'task': 'build_index', 'data': {'source': 'files'}, 'retrieval': {
            'sources': str(source), 'ingestion': {'dpi': 72, 'workers': 1, 'ocr': 'never'},
            **retrieval}})


@pytest.fixture
def source(make_pdf, tmp_path):
    make_pdf('fruit.pdf', 'apples and pears are fruit', 'bananas are yellow fruit')
    make_pdf('ships.pdf', 'the harbour is full of ships')
    (tmp_path / 'in' / 'metadata.csv').write_text('file_name,year\nships.pdf,1987\n')
    return tmp_path / 'in'


def search(workdir, query, filters=None):
    store = PageStore.open(workdir / 'pages' / 'pages.jsonl')
    engine = SearchEngine.open(workdir / 'index', store)
    return [hit.page_id for hit in engine.search([query], 1, filters)[0]]


def test_documents_are_found_and_changes_are_taken_over(make_pdf, source, tmp_path, capsys):
    work = tmp_path / 'work'
    build_index.run(RunContext(config_of(source), work))
    printed = capsys.readouterr().out
    assert '2 added, 0 replaced' in printed and 'ngram, dense: 3 pages' in printed
    assert search(work, 'yellow bananas') == ['fruit_2']
    # A page that matches a little, where the one that matches best is left out.
    assert search(work, 'yellow bananas, full of fruit') == ['fruit_2']
    assert search(work, 'yellow bananas, full of fruit', {'year': 1987}) == ['ships_1']
    make_pdf('birds.pdf', 'storks and herons are birds')
    (source / 'ships.pdf').unlink()
    build_index.run(RunContext(config_of(source), work))
    assert '1 added, 0 replaced, 1 unchanged, 1 deleted' in capsys.readouterr().out
    assert search(work, 'herons') == ['birds_1'] and search(work, 'yellow') == ['fruit_2']
    assert len(list((work / 'pages' / 'documents').iterdir())) == 2


def test_several_retrievers_are_fused_and_opened_again(source, tmp_path, capsys, monkeypatch):
    work, both = tmp_path / 'work', config_of(source, retrievers=('ngram', 'bm25'))
    build_index.run(RunContext(both, work))
    assert 'hybrid: of 2 by reciprocal rank' in capsys.readouterr().out
    assert search(work, 'ships in the harbour') == ['ships_1']
    store = PageStore.open(work / 'pages' / 'pages.jsonl')
    monkeypatch.setattr(retrievers, '_build', lambda *_: pytest.fail('built though it is there'))
    assert open_engine(both.retrieval, store, work).retriever.kind == 'hybrid'
    # Elsewhere it is used, and only if it is what was asked for.
    elsewhere = config_of(source, retrievers=('ngram', 'bm25'), index_dir=str(work / 'index'))
    assert open_engine(elsewhere.retrieval, store, tmp_path / 'x').retriever.kind == 'hybrid'
    other = config_of(source, retrievers=('bm25',), index_dir=str(work / 'index'))
    with pytest.raises(ValueError, match='cannot be used: its retrievers have other settings'):
        open_engine(other.retrieval, store, tmp_path / 'x')
    fewer = PageStore(store.folder, list(store)[:2])
    with pytest.raises(ValueError, match='cannot be used: only the index holds'):
        open_engine(elsewhere.retrieval, fewer, tmp_path / 'x')


@pytest.mark.parametrize('change', [
    {'retrievers': ('bm25',)}, {'retrievers': ('bm25', 'ngram')}, {'encoder': {'dims': 2}},
    {'bm25': {'k1': 2.0}}, {'index': {'reorder': 10}}, {'hybrid': {'constant': 1.0}}])
def test_other_settings_build_the_index_anew(source, tmp_path, change):
    work = tmp_path / 'work'
    settings = {'retrievers': ('ngram', 'bm25')}
    build_index.run(RunContext(config_of(source, **settings), work))
    before = json.loads((work / 'index' / 'manifest.json').read_text())
    build_index.run(RunContext(config_of(source, **settings), work))
    assert json.loads((work / 'index' / 'manifest.json').read_text()) == before
    build_index.run(RunContext(config_of(source, **{**settings, **change}), work))
    assert json.loads((work / 'index' / 'manifest.json').read_text()) != before


def test_an_embedder_is_loaded_and_its_vectors_are_kept(source, tmp_path, capsys):
    from vrag_jax.embedders.text_embedder import wheel_directory
    try:
        wheel_directory()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    work = tmp_path / 'work'
    config = config_of(source, retrievers=('mini',), embedders={
        'mini': {'kind': 'text', 'path': 'minilm', 'text': {'windows': 'mean'}}})
    build_index.run(RunContext(config, work))
    printed = capsys.readouterr()
    assert 'mini: embedding: 100%' in printed.err and '3/3' in printed.err
    assert 'text, dense: 3 pages' in printed.out
    engine = open_engine(config.retrieval, PageStore.open(work / 'pages' / 'pages.jsonl'), work)
    # No word of it is on the page.
    assert engine.search(['vessels at the quay'], 1)[0][0].page_id == 'ships_1'
    build_index.run(RunContext(config, work))
    assert 'embedded' not in capsys.readouterr().out


def test_a_name_with_a_comma_is_given_in_a_tuple(make_pdf, source, tmp_path, capsys):
    file = make_pdf('../Acme, Inc.pdf', 'storks and herons are birds')
    work = tmp_path / 'work'
    with pytest.raises(ConfigError, match=r'sources: .*/Acme does not exist'):
        check(config_of(source, sources=str(file)))
    config = config_of(source, sources=(str(source), str(file)))
    check(config)
    build_index.run(RunContext(config, work))
    assert '3 added' in capsys.readouterr().out and search(work, 'herons') == ['Acme, Inc_1']
    with pytest.raises(ConfigError, match="sources: expected paths, got ''"):
        config_of(source, sources=('', str(file)))


def test_scans_alone_are_refused_with_advice(tmp_path, capsys):
    for i in range(2):
        Image.fromarray(np.full((9, 9), i, np.uint8)).save(tmp_path / f'{i}.png')
    with pytest.raises(SystemExit, match="none of the 2 page texts holds a word.*ingestion.ocr="):
        build_index.run(RunContext(
            config_of(f'{tmp_path}/0.png, {tmp_path}/1.png'), tmp_path / 'work'))
    printed = capsys.readouterr().out
    assert printed.startswith('search: by ngram\n') and '2 pages have no text layer' in printed


def test_pages_that_cannot_be_read_are_not_counted_among_the_pages(source, tmp_path, capsys):
    (source / 'broken.png').write_bytes(b'nothing')
    build_index.run(RunContext(config_of(source), tmp_path / 'work'))
    assert 'pages: 3, 0 of them by OCR; ' in capsys.readouterr().out


def test_a_text_embedder_that_is_not_there_is_told_before_anything_is_read(source, tmp_path):
    with pytest.raises(ConfigError, match='embedders.m.path: .*x/config.json: no such model conf'):
        check(config_of(source, embedders={'m': {'kind': 'text', 'path': str(tmp_path / 'x')}}))


def test_configs_that_cannot_work_are_refused(source, tmp_path):
    with pytest.raises(ConfigError, match='retrieval.sources: .*nowhere does not exist'):
        check(config_of(tmp_path / 'nowhere'))
    check(config_of(source))
    wrong_task = parse(RunConfig, {'task': 'evaluate', 'retrieval': {'sources': str(source)}})
    with pytest.raises(ConfigError, match='retrieval.sources: only the task build_index'):
        check(wrong_task)
    for settings, message in (
            ({'retrievers': ('ngram', 'x')}, "got \\('ngram', 'x'\\)"),
            ({'retrievers': ('ngram',), 'embedders': {'mini': {}}},
             'embedders.mini: is not one of'),
            ({'embedders': {'bm25': {}}}, "'bm25' is the name of another"),
            ({'ingestion': {'dpi': 0}}, 'ingestion: dpi must be positive')):
        with pytest.raises(ConfigError, match=message):
            config_of(source, **settings)
    (tmp_path / 'work').mkdir()
    build_index.run(RunContext(config_of(source), tmp_path / 'work'))
    with pytest.raises(SystemExit, match='dpi 72, not 100'):
        build_index.run(RunContext(
            config_of(source, ingestion={'dpi': 100, 'workers': 1}), tmp_path / 'work'))
