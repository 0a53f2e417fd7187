"""A PageWorld on disk is complete or not there, is used again, and is always the same."""

import dataclasses
import json

import pytest

from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.pageworld import files as building
from vrag_jax.data.pageworld.config import SPLITS
from vrag_jax.data.pageworld.files import build, load


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*'))
            if p.is_file()}


def test_pages_are_images_in_one_store(small_world, small_config):
    store = PageStore.open(small_world.manifest)
    assert len(store) == 11 * small_config.pages_per_document
    assert set(store.ids) == set(small_world.layouts)
    for page_id in store.ids[:5]:
        spec = small_world.layouts[page_id]
        page = store[page_id]
        assert (page.document, page.page, page.text) == (spec.document, spec.page, spec.text)
        assert store.image(page_id).size == small_config.page_size


def test_splits_share_no_document_and_have_their_sizes(small_world, small_config):
    documents = {}
    for split in SPLITS:
        questions = small_world.questions[split]
        assert len(questions) == small_config.questions(split)
        documents[split] = {q.extra['document'] for q in questions}
        assert len(documents[split]) <= small_config.documents(split)
    assert not documents['train'] & documents['test']
    assert not documents['train'] & documents['validation']
    assert not documents['validation'] & documents['test']


def test_questions_keep_their_evidence_and_program(small_world):
    for question in small_world.questions['test']:
        assert question.page_ids and len(question.evidence) == len(question.page_ids)
        spec = small_world.layouts[question.page_ids[0]]
        assert question.extra['topic'] == spec.topic


def test_equal_configs_give_equal_files(small_world, small_config, tmp_path):
    again = build(small_config, tmp_path / 'again')
    assert files(tmp_path / 'again') == files(small_world.manifest.parent)
    assert again.questions == small_world.questions
    assert again.layouts == small_world.layouts


@pytest.fixture
def tiny_config(small_config):
    return dataclasses.replace(
        small_config, train_documents=1, validation_documents=1, test_documents=1,
        train_questions=2, validation_questions=2, test_questions=2)


def test_an_identical_one_is_used_again_and_another_replaced(tiny_config, tmp_path, monkeypatch):
    rendered = []
    render = building.render_page
    monkeypatch.setattr(building, 'render_page', lambda page, config: (
        rendered.append(page.page_id), render(page, config))[1])
    build(tiny_config, tmp_path / 'world')
    assert len(rendered) == 12
    build(tiny_config, tmp_path / 'world')
    assert len(rendered) == 12
    build(dataclasses.replace(tiny_config, seed=1), tmp_path / 'world')
    assert len(rendered) == 24


@pytest.mark.parametrize('missing', ['layout.jsonl', 'questions_test.json', 'a page'])
def test_one_with_a_missing_file_is_made_again(tiny_config, tmp_path, missing):
    build(tiny_config, tmp_path / 'world')
    before = files(tmp_path / 'world')
    path = tmp_path / 'world' / missing
    (next((tmp_path / 'world' / 'pages').iterdir()) if missing == 'a page' else path).unlink()
    build(tiny_config, tmp_path / 'world')
    assert files(tmp_path / 'world') == before


def test_one_that_is_interrupted_leaves_nothing_half_done(tiny_config, tmp_path, monkeypatch):
    rendered = []

    def render_and_die(page, config):
        rendered.append(page)
        if len(rendered) == 5:
            raise KeyboardInterrupt
        return render(page, config)

    render = building.render_page
    monkeypatch.setattr(building, 'render_page', render_and_die)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_config, tmp_path / 'world')
    assert not (tmp_path / 'world').exists()
    with pytest.raises(FileNotFoundError, match=r'pageworld\.json is missing'):
        load(tmp_path / 'world')
    monkeypatch.setattr(building, 'render_page', render)
    world = build(tiny_config, tmp_path / 'world')
    assert len(PageStore.open(world.manifest)) == 12
    assert [p.name for p in tmp_path.iterdir()] == ['world']


def test_other_peoples_folders_are_left_alone(tiny_config, tmp_path):
    (tmp_path / 'thesis.txt').write_text('ten years of work')
    with pytest.raises(FileExistsError, match='neither empty nor a PageWorld'):
        build(tiny_config, tmp_path)
    assert (tmp_path / 'thesis.txt').read_text() == 'ten years of work'


def test_the_config_lies_beside_the_pages(small_world, small_config):
    record = json.loads((small_world.manifest.parent / 'pageworld.json').read_text())
    assert record['config']['page_size'] == list(small_config.page_size)
